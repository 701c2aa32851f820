"""What becomes of a layer's weights: replaced, tied, written to, normalised, pruned, parametrised; all must be seen.

Each takes a layer of two layers and two directions, of torch.nn or rnnkit; those in OF_ANY a cell as well.
"""

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune


def replace(module):
    for name, weight in list(module.named_parameters()):
        setattr(module, name, nn.Parameter(weight.detach().flip(0)))


def tie(module):
    module.weight_hh_l1 = module.weight_hh_l0
    module.bias_ih_l1_reverse = module.bias_hh_l0


def as_plain_tensors(module):
    for name, weight in list(module.named_parameters()):
        delattr(module, name)
        setattr(module, name, weight.detach() * 1.5)


def as_buffers(module):
    for name, weight in list(module.named_parameters()):
        delattr(module, name)
        module.register_buffer(name, weight.detach() * 1.5)


def in_place(module):
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(1.5)


def through_data(module):
    for weight in module.parameters():
        weight.data = weight.data * 1.5


def cast_twice(module):
    module.float().double()


def weight_norm(module):
    nn.utils.weight_norm(module, "weight_hh_l0")
    with torch.no_grad():
        module.weight_hh_l0_g.mul_(2)


def spectral_norm(module):
    torch.manual_seed(0)
    nn.utils.spectral_norm(module, "weight_hh_l0")


def pruned(module):
    prune.l1_unstructured(module, "weight_ih_l0", amount=0.5)
    prune.l1_unstructured(module, "weight_hh_l1", amount=3)


def pruned_for_good(module):
    pruned(module)
    prune.remove(module, "weight_ih_l0")


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrized(module):
    parametrize.register_parametrization(module, "weight_hh_l0", Doubled())
    parametrize.register_parametrization(module, "bias_hh_l1", Doubled())


def parametrized_and_back(module):
    parametrized(module)
    parametrize.remove_parametrizations(module, "weight_hh_l0")


def orthogonal(module):
    torch.manual_seed(0)
    parametrizations.orthogonal(module, "weight_hh_l0")


def new_weight_norm(module):
    parametrizations.weight_norm(module, "weight_hh_l0")
    with torch.no_grad():
        module.parametrizations.weight_hh_l0.original0.mul_(2)


def new_spectral_norm(module):
    torch.manual_seed(0)
    parametrizations.spectral_norm(module, "weight_hh_l0")
    module.eval()  # in training every look at the weight is a step of its power iteration


CHANGES = [
    replace,
    tie,
    as_plain_tensors,
    as_buffers,
    in_place,
    through_data,
    cast_twice,
    weight_norm,
    spectral_norm,
    pruned,
    pruned_for_good,
    parametrized,
    parametrized_and_back,
    orthogonal,
    new_weight_norm,
    new_spectral_norm,
]

OF_ANY = [replace, as_plain_tensors, as_buffers, in_place]
