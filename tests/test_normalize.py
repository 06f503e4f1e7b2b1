"""What the notebooks can't show of folding an input normalization: each kind of first layer, each padding, and each network in which it must stay as it is.
PyTorch itself is the judge, in float64, at the borders too"""
from itertools import product
import io
import pytest, torch
from torch import nn
from fastfold.affine import fold_normalize, FoldError
from random_nets import difference

def batch(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
def stats(n): return batch(n, seed=1)*3, batch(n, seed=2).abs()+.1

# fold_normalize

paddings = [dict(padding=0), dict(padding=2), dict(padding='same')]
modes = ['zeros', 'reflect', 'replicate', 'circular']
@pytest.mark.parametrize('n', [1, 2, 3])
@pytest.mark.parametrize('groups', [1, 2])
def test_convolutions(n, groups):
    "of 1 to 3 axes, whatever they pad, with and without bias; always plain modules"
    x,(mean,std) = batch(2, 4, *(7,)*n),stats(4)
    m,s = (t.view(-1, *(1,)*n) for t in (mean, std))
    for padding,mode,dilation,bias in product(paddings, modes, (1, 2), (True, False)):
        torch.manual_seed(0)
        conv = getattr(nn, f'Conv{n}d')(4, 6, 3, groups=groups, padding_mode=mode, dilation=dilation, bias=bias, **padding).double()
        want = conv((x-m)/s)
        for pad in None,'mean':
            new = fold_normalize(conv, mean, std, pad=pad)
            assert difference([want], [new(x)])<1e-12
            assert all(type(o).__module__.startswith('torch.nn') for o in new.modules())
            assert isinstance(new, nn.Sequential)==(mode=='zeros' and padding['padding']!=0)

@pytest.mark.parametrize('n', [1, 2, 3])
@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('bias', [True, False])
def test_transposed_convolutions(n, groups, bias):
    "an output pixel sees a number of input pixels that depends on where it is"
    x,(mean,std) = batch(2, 4, *(5,)*n),stats(4)
    m,s = (t.view(-1, *(1,)*n) for t in (mean, std))
    conv = getattr(nn, f'ConvTranspose{n}d')(4, 6, 3, stride=2, padding=1, output_padding=1, groups=groups, bias=bias).double()
    for pad in None,'mean': assert difference([conv((x-m)/s)], [fold_normalize(conv, mean, std, pad=pad)(x)])<1e-12

@pytest.mark.parametrize('channels', [1, 3, 5, 12])
def test_channels(channels):
    "any number of them; statistics in any shape, or one value for all; one picture without a batch"
    conv,x = nn.Conv2d(channels, 4, 3, padding=1).double(),batch(2, channels, 6, 6)
    mean,std = stats(channels)
    for pad in None,'mean':
        want = conv((x - mean[:,None,None])/std[:,None,None])
        for shape in (-1,), (1,-1,1,1): assert difference([want], [fold_normalize(conv, mean.view(shape), std.view(shape), pad=pad)(x)])<1e-12
        assert difference([want[0]], [fold_normalize(conv, mean.tolist(), std.tolist(), pad=pad)(x[0])])<1e-12
        assert difference([conv((x-.5)/.2)], [fold_normalize(conv, .5, .2, pad=pad)(x)])<1e-12

def test_linear():
    lin,x,(mean,std) = nn.Linear(5, 3, bias=False).double(),batch(2, 7, 5),stats(5)
    assert difference([lin((x-mean)/std)], [fold_normalize(lin, mean, std)(x)])<1e-12

@pytest.mark.parametrize('pad', [None, 'mean'])
def test_layer_is_kept_as_it_was(pad):
    "the original, its flags and dtype; no random number is drawn; what comes out can be saved and trained"
    conv = nn.Conv2d(3, 4, 3, padding=1, dtype=torch.float16).eval()
    conv.bias.requires_grad_(False)
    before,rng = conv.weight.clone(),torch.get_rng_state()
    new = fold_normalize(conv, [.4, .5, .6], .25, pad=pad)
    assert torch.equal(conv.weight, before) and torch.equal(rng, torch.get_rng_state())
    assert {p.dtype for p in new.parameters()}=={torch.float16} and not any(m.training for m in new.modules())
    assert new[-1].weight.requires_grad and not new[-1].bias.requires_grad
    data = io.BytesIO()
    torch.save(new, data)
    assert b'fastfold' not in data.getvalue()

def test_computed_weight():
    "a hook would put the old weight back at the next call"
    with pytest.warns(FutureWarning): conv = nn.utils.weight_norm(nn.Conv2d(3, 4, 3))
    with pytest.raises(FoldError, match='remove_weight_norm'): fold_normalize(conv, 0, 2)

@pytest.mark.parametrize('mean,std', [(float('nan'), 1), (0, float('inf')), ([0, 0], 1), (0, [1, -1, 1])])
def test_statistics_that_make_no_sense(mean, std):
    with pytest.raises(FoldError, match='give'): fold_normalize(nn.Conv2d(3, 4, 3), mean, std)
