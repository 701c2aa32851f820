"""Two processes with gloo, started in each way that the example offers. The cells of test_matrix compare gradients."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from helpers import thinned

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = str(ROOT / "examples" / "train_ddp.py")

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch was built without gloo"
)

STARTS = {
    "spawn": [sys.executable, EXAMPLE],
    "spawn, sharded": [sys.executable, EXAMPLE, "--shard"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", EXAMPLE],
}


@pytest.mark.parametrize("start", thinned(len(STARTS), [*STARTS]))
def test_two_processes_learn_what_one_learns(start, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*STARTS[start], "--steps", "12"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^ +(\d+) +(\S+) +(\S+)$", done.stdout, re.M)
    losses = [float(alone) for _, alone, _ in rows]
    assert [int(step) for step, *_ in rows] == [1, 4, 7, 12]
    assert losses[-1] < losses[0]
    assert float(re.search(r"differ by (\S+) at most", done.stdout).group(1)) < 1e-5
