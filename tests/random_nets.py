"The random networks of `fastfold.lab.fuzz` as a hypothesis strategy, and norms that do something for all tests. A package shouldn't need hypothesis"
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from hypothesis import strategies as st
from fastfold.lab.fuzz import check, difference, random_net

__all__ = ['check', 'difference', 'live', 'nets'] # what tests take from here

def live(model, dtype=torch.float64, seed=0):
    "`model` in evaluation, with norms that do something: fresh ones would hide a lost scale or shift"
    g = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if not isinstance(m, _NormBase) or m.running_mean is None: continue
        n = m.num_features
        m.running_mean = torch.randn(n, generator=g)
        m.running_var = torch.rand(n, generator=g)+.5
        if isinstance(m._parameters.get('weight'), nn.Parameter):
            m.weight.data = (torch.rand(n, generator=g)+.5)*(torch.randint(0, 2, (n,), generator=g)*2-1)
            if m.bias is not None: m.bias.data = torch.randn(n, generator=g)
    return model.to(dtype).eval()

@st.composite
def nets(draw, sums=False): return random_net(lambda options: draw(st.sampled_from(options)), sums=sums)
