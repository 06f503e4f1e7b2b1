"""The random networks of `fastfold.lab.networks` as a hypothesis strategy, and for all tests a batch
and norms that do something. A package shouldn't need hypothesis"""
import torch
from hypothesis import strategies as st
from fastfold.lab.fuzz import check, difference
from fastfold.lab.models import live_norms
from fastfold.lab.networks import random_net

__all__ = ['batch', 'check', 'difference', 'live', 'nets'] # what tests take from here

def batch(*shape, seed=0):
    "The same numbers whenever `shape` and `seed` are the same"
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

def live(model, dtype=torch.float64, seed=0):
    "`model` in evaluation, with norms that do something: fresh ones would hide a lost scale or shift"
    return live_norms(model, seed, strong=True).to(dtype).eval()

@st.composite
def nets(draw, sums=False): return random_net(lambda options: draw(st.sampled_from(options)), sums=sums)
