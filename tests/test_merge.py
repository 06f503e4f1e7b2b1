"""Parallel layers that become one: every geometry, each thing that must be refused, and every network that was ever
merged wrongly or might be. Verification is off, unless it is what is tested; everything is in float64, to 1e-9"""
import pickle, subprocess, sys
from copy import deepcopy
from dataclasses import replace
import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import nn
from fastfold.core.rules import conv_axis, conv_obstacle, LayerRule
from fastfold.merge.kernel import kernel_of
from fastfold.folder import BN_Folder
from random_nets import check, difference, live, nets

def batch(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
images = batch(2, 4, 7, 9)

class Block(nn.Module):
    "`children`, used as the function `forward` says"
    def __init__(self, function, **children):
        super().__init__()
        self.function = function
        for k,m in children.items(): setattr(self, k, m)
    def forward(self, x): return self.function(self, x)

def conv(i=4, o=4, k=3, **kwargs): return nn.Conv2d(i, o, k, **kwargs)
def normed(*layers): return nn.Sequential(*layers, nn.BatchNorm2d(layers[-1].out_channels))
def tensors(model, x):
    with torch.no_grad(): out = model(x.clone())
    return list(out) if isinstance(out, (list, tuple)) else [out]

def state(model):
    "All modules and tensors of `model`, and the bits in them"
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [*model.named_modules()],tensors,{k:v.clone() for k,v in model.state_dict().items()}

def check_same(a, b):
    for s,t in zip(a[:2], b[:2]): assert len(s)==len(t) and all(k==l and v is w for (k,v),(l,w) in zip(s, t))
    assert all(torch.equal(v, b[2][k]) for k,v in a[2].items())

def merge(block, x=images, others=(), **options):
    """Merge in a network of `block` and an activation, as a copy and in place, and see that it computes the same;
    returns the report"""
    net = live(nn.Sequential(block, nn.ReLU()))
    xs,before,folder = [x, *others],state(net),BN_Folder(merge=True, **dict(verify=False) | options)
    want = [tensors(net, o) for o in xs]
    plan = folder.plan(net, x)
    check_same(before, state(net))
    folded = folder.fold(net, x)
    check_same(before, state(net))
    for o,w in zip(xs, want): assert difference(w, tensors(folded, o))<1e-9, str(folder.report)
    assert plan==folder.report
    folder.fold(net, x, inplace=True)
    for o,w in zip(xs, want): assert difference(w, tensors(net, o))<1e-9, str(folder.report)
    folder.unfold()
    check_same(before, state(net))
    return folder.report

def merges(block, *args, n=1, **kwargs):
    "`merge`, for blocks in which exactly `n` sums become layers, and no norm is left"
    rep = merge(block, *args, **kwargs)
    assert len(rep.merged)==n and not rep.kept, f'{rep} {rep.sums}'
    return rep

def refuses(block, *args, why='', **kwargs):
    "`merge`, for blocks that have to stay; `why` is part of the reason, or no reason is given"
    rep = merge(block, *args, **kwargs)
    assert not rep.merged and (why in rep.sums[0].reason if why else not rep.sums), f'{rep} {rep.sums}'

def repvgg(groups=1, **kwargs):
    return Block(lambda m,x: m.a(x) + m.b(x) + m.c(x), a=normed(conv(padding=1, groups=groups, **kwargs)),
        b=normed(conv(k=1, groups=groups)), c=nn.BatchNorm2d(4))

@pytest.mark.parametrize('groups', [1, 2, 4])
def test_repvgg(groups): merges(repvgg(groups), others=[batch(1, 4, 3, 3, seed=1)])

# geometry

def total(m, x): return sum(getattr(m, k)(x) for k in m._modules)
def branches(*ms): return Block(total, **{f'b{i}':m for i,m in enumerate(ms)})

@pytest.mark.parametrize('kw,n', [
    (dict(stride=2), 0), (dict(stride=(2,1)), 0), (dict(bias=False), 0), (dict(padding_mode='reflect'), 0),
    (dict(padding_mode='circular'), 0), (dict(padding_mode='replicate'), 0), (dict(groups=2), 0),
    (dict(bias=False), 1)])
def test_sizes(kw, n):
    "Kernels of several sizes, each with the padding that keeps the size, and `n` times the value itself"
    one = {k:v for k,v in kw.items() if k!='padding_mode'}
    ms = [normed(conv(k=1, **one)), normed(conv(k=3, padding=1, **kw)), conv(k=(1,3), padding=(0,1), **kw),
        conv(k=(5,1), padding=(2,0), **kw), conv(k=(5,5), padding='same' if 'stride' not in kw else 2, **kw),
        *[nn.Identity()]*n]
    rep = merges(branches(*ms), others=[batch(3, 4, 5, 6, seed=1)])
    assert len(rep.merged[0].members)==5 and rep.merged[0].kind=='Conv2d'

def test_asymmetric():
    ms = [normed(conv(k=(1,3), padding=(0,1))), normed(conv(k=(3,1), padding=(1,0))), normed(conv(padding=1))]
    merges(branches(*ms))
    refuses(branches(conv(k=(1,3), padding=(0,1)), conv(k=(3,1), padding=(1,0))), why='multiplications')

@pytest.mark.parametrize('cls,x', [
    (nn.Conv1d, batch(2, 4, 9)), (nn.Conv3d, batch(2, 4, 5, 4, 6)), (nn.Conv2d, batch(4, 7, 9))])
def test_axes(cls, x): merges(branches(cls(4, 4, 3, padding=1), cls(4, 4, 1), nn.Identity()), x)

def test_dilation():
    merges(branches(conv(padding=2, dilation=2), conv(k=1), nn.Identity()))
    merges(branches(conv(padding=2, dilation=2), conv(k=1, dilation=3), conv(k=5, padding=2)))
    ms = [conv(padding=2, dilation=2), conv(k=5, padding=4, dilation=2), conv(k=(1,3), padding=(0,4), dilation=4)]
    merges(branches(*ms))
    refuses(branches(conv(padding=2, dilation=2), conv(padding=1)), why='multiplications')

def test_valid():
    "Without padding, and with too little of it"
    merges(branches(conv(), conv(), normed(conv(k=5, padding=1))), others=[batch(1, 4, 5, 5)])
    merges(branches(conv(padding=3), conv(k=1, padding=2)))

@pytest.mark.parametrize('x', [batch(3, 4), batch(3, 5, 4)])
def test_linear(x):
    merges(branches(nn.Linear(4, 4), nn.Identity()), x)
    merges(branches(nn.Linear(4, 4, bias=False), nn.Linear(4, 4)), x)
    merges(Block(lambda m,x: x + m.g*m.a(x), a=nn.Linear(4, 4), g=nn.Parameter(torch.randn(4))), x)

def test_linear_norm():
    merges(Block(lambda m,x: m.b(m.a(x) + x), a=nn.Linear(4, 4), b=nn.BatchNorm1d(4)), batch(3, 4))
    net = branches(nn.Linear(4, 4), nn.BatchNorm1d(4))
    merges(net, batch(3, 4))
    refuses(net, batch(3, 4, 4), why='another axis')

def test_groups():
    merges(branches(conv(4, 8, groups=2, padding=1), conv(4, 8, k=1, groups=4)))
    ms = [conv(12, 12, padding=1), conv(12, 12, 1, groups=4), conv(12, 12, 1, groups=6), nn.Identity()]
    merges(branches(*ms), batch(1, 12, 5, 5))
    refuses(branches(conv(groups=4, padding=1), conv(k=1)), why='multiplications')
    ms = [conv(12, 12, padding=1, groups=n) for n in (6, 4)]
    refuses(branches(*ms), batch(1, 12, 5, 5), why='multiplications')

def test_stride_and_identity():
    "One pixel comes out of either, but of no other size"
    refuses(branches(conv(padding=1, stride=2), nn.Identity()), batch(2, 4, 1, 1), why='strides')
    refuses(branches(conv(k=2, padding=1, stride=2), conv(k=1, stride=2)), batch(2, 4, 1, 1), why='strides')
    refuses(branches(conv(k=2, stride=2), conv(k=3, stride=2, padding=1)), batch(2, 4, 6, 6), why='strides')

def test_borders():
    merges(branches(conv(padding=1, padding_mode='reflect'), conv(k=5, padding=2, padding_mode='reflect'),
        conv(k=1, padding_mode='circular')))
    refuses(branches(conv(padding=1, padding_mode='reflect'), conv(padding=1)), why='pad in the same way')
    merges(branches(conv(k=2, padding='same'), conv(k=1)))
    merges(branches(conv(k=3, padding='valid'), conv(k=3)))

def dbb(p):
    chain = nn.Sequential(normed(conv(4, 6, k=1, padding=p)), normed(conv(6, padding=1-p)))
    return branches(normed(conv(padding=1)), normed(conv(k=1)), chain)

def test_one_after_the_other():
    "As in a diverse branch block: the first, of single pixels, pads with its own value"
    merges(dbb(1))
    chain = nn.Sequential(conv(4, 6, k=1), conv(6, padding=1))
    refuses(branches(conv(padding=1), chain), why='pads with zeros what has been shifted')
    assert merge(dbb(0)).merged[0].members==['0.b0.0', '0.b1.0']
    merges(branches(conv(padding=1), nn.Sequential(conv(4, 6, k=1, bias=False), conv(6, padding=1))))
    merges(branches(conv(padding=2), nn.Sequential(conv(4, 6, k=1, bias=False, padding=1), conv(6, padding=1))))
    chain = nn.Sequential(conv(4, 8, k=1, groups=4, bias=False), conv(8, padding=1, groups=2))
    merges(branches(conv(padding=1), chain))
    refuses(branches(conv(k=5, padding=2), nn.Sequential(conv(padding=1), conv(padding=1))), why='several pixels')
    chain = nn.Sequential(conv(4, 8, k=1), conv(8, padding=1, padding_mode='circular'))
    merges(branches(conv(padding=1, padding_mode='circular'), chain))
    merges(branches(nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))), batch(3, 4))

@pytest.mark.parametrize('kw', [
    {}, dict(padding_mode='reflect'), dict(groups=2), dict(padding=2, dilation=2), dict(bias=False)])
def test_point_after(kw):
    "A layer of single pixels takes what any other makes, with its padding and its bias"
    kw = dict(padding=1) | kw
    chain = nn.Sequential(normed(conv(4, 8, **kw)), normed(conv(8, k=1)))
    merges(branches(conv(**kw), chain), others=[batch(1, 4, 5, 6)])

def test_chains():
    chain = nn.Sequential(conv(4, 8, padding=1, groups=4), conv(8, k=1, groups=2))
    merges(branches(chain, conv(padding=1), nn.Identity()))
    merges(branches(nn.Sequential(conv(4, 6, 1), conv(6, 5), conv(5, k=1)), conv()), others=[batch(1, 4, 3, 3)])
    merges(Block(lambda m,x: m.c(m.a(x) + m.b(x)) - x, a=conv(padding=1), b=conv(k=1), c=conv(k=1)))
    chain = nn.Sequential(conv(padding=1), conv(k=1, padding=1))
    refuses(branches(conv(padding=2), chain), why='pads with zeros what has been shifted')
    chain = nn.Sequential(conv(padding=1, bias=False), conv(k=1, padding=1))
    refuses(branches(conv(padding=2), chain), why='pad in the same way')
    refuses(branches(conv(groups=4), nn.Sequential(conv(4, 1), conv(1, 4, 1))), why='multiplications')

def test_strides_after():
    "Strides multiply, and so does what comes after the first one: images of all sizes come out as large as before"
    sizes = [batch(1, 4, n, n+1) for n in range(5, 12)]
    chain = nn.Sequential(conv(4, 6, padding=1), conv(6, k=1, stride=2))
    merges(branches(chain, conv(padding=1, stride=2)), others=sizes)
    chain = nn.Sequential(conv(4, 6, padding=1, stride=2), conv(6, k=1, stride=2))
    merges(branches(chain, conv(padding=1, stride=4)), others=sizes)
    chain = nn.Sequential(conv(4, 4, k=1, stride=2), conv())
    merges(branches(chain, conv(k=5, stride=2), conv(k=5, stride=2)), others=sizes)
    for last in conv(padding=1), conv(padding=1, stride=2):
        ms = [conv(k=5, padding=2, stride=2*last.stride[0]) for _ in range(2)]
        merges(branches(nn.Sequential(conv(k=1, stride=2, bias=False), last), *ms), others=sizes)
    ms = [conv(k=5, padding=1, stride=4) for _ in range(2)]
    merges(branches(nn.Sequential(conv(k=1, stride=2, padding=1), conv(stride=2)), *ms), others=sizes)
    chain = nn.Sequential(conv(padding=1), conv(k=1, stride=2))
    refuses(branches(chain, conv(padding=1)), batch(2, 4, 1, 1), why='strides')
    both = [conv(padding=1, padding_mode='reflect'), conv(k=5, stride=2, padding=2, padding_mode='reflect')]
    refuses(branches(nn.Sequential(conv(k=1, stride=2, bias=False), both[0]), both[1]), why='pad in the same way')

# average pooling

def avg(k=3, stride=1, padding=None, **kwargs):
    return nn.AvgPool2d(k, stride, k//2 if padding is None else padding, **kwargs)

def test_pool():
    for pool in (avg(), avg(divisor_override=5), avg((3,1), padding=(1,0)),
            avg(divisor_override=4, count_include_pad=False), avg(1)):
        merges(branches(conv(padding=1), pool, nn.Identity()), others=[batch(1, 4, 5, 5), batch(1, 4, 2, 3)])
    rep = merges(branches(conv(k=5, padding=1), nn.Sequential(avg(padding=0), nn.BatchNorm2d(4)), conv()))
    assert rep.merged[0].members==['0.b0', '0.b1.0', '0.b1.1', '0.b2']
    merges(branches(avg(padding=0, count_include_pad=False), conv()))
    merges(branches(avg(2, 2, padding=0), conv(k=2, stride=2)), others=[batch(1, 4, 5, 6)])
    merges(branches(nn.AvgPool2d(2), conv(k=4, stride=2, padding=1)), others=[batch(1, 4, 5, 6)])
    merges(branches(conv(padding=1, groups=4), avg(), nn.Identity()))

def test_pool_function():
    for f in (lambda x: F.avg_pool2d(x, 3, 1, 1),
            lambda x: F.avg_pool2d(x, kernel_size=(3,1), stride=1, padding=(1,0), divisor_override=2),
            lambda x: F.avg_pool2d(input=x, kernel_size=[3], stride=[1], padding=[1])):
        rep = merges(Block(lambda m,x: m.a(x) + f(x), a=conv(padding=1)))
        assert rep.merged[0].members==['0.a']
    merges(Block(lambda m,x: m.a(x) + F.avg_pool2d(x, 2), a=conv(k=2, stride=2)))
    block = Block(lambda m,x: m.a(x) + F.avg_pool2d(x, 3, 1, 1, False, False), a=conv(padding=1))
    refuses(block, why="avg_pool2d in '0' averages fewer pixels")

@pytest.mark.parametrize('cls,pool,x', [
    (nn.Conv1d, nn.AvgPool1d, batch(2, 4, 9)), (nn.Conv3d, nn.AvgPool3d, batch(2, 4, 5, 4, 6)),
    (nn.Conv2d, nn.AvgPool2d, batch(4, 7, 9)), (nn.Conv1d, nn.AvgPool1d, batch(4, 9))])
def test_pool_axes(cls, pool, x):
    merges(branches(cls(4, 4, 3, padding=1), pool(3, 1, 1), nn.Sequential(pool(3, 1, 1), cls(4, 4, 1))), x)

def test_pool_after():
    "What pools with padding pads with zeros, so it must not have been shifted"
    before,after = nn.Sequential(conv(k=1, bias=False), avg()),nn.Sequential(avg(), normed(conv(k=1)))
    merges(branches(conv(padding=1), before, after))
    merges(branches(conv(), nn.Sequential(conv(4, 6, k=1), avg(padding=0), conv(6, k=1))))
    merges(branches(conv(padding=1), nn.Sequential(conv(k=1, padding=1), avg(padding=0))))
    for layer in conv(k=1), normed(conv(k=1, bias=False)), nn.BatchNorm2d(4):
        rep = merge(branches(conv(padding=1), nn.Sequential(layer, avg())))
        assert not rep.merged and 'pads with zeros what has been shifted' in rep.sums[0].reason
    refuses(branches(conv(k=5, padding=2), nn.Sequential(conv(padding=1), avg())), why='looks at several pixels')
    refuses(branches(conv(k=5, padding=2), nn.Sequential(avg(), avg())), why='looks at several pixels')

def test_pool_stays():
    refuses(branches(conv(padding=1), avg(count_include_pad=False)), why="'0.b1' averages fewer pixels")
    refuses(branches(conv(k=2, stride=2), nn.AvgPool2d(2, ceil_mode=True)), batch(1, 4, 6, 6), why='ceil_mode')
    refuses(branches(conv(padding=1, stride=2), avg()), batch(2, 4, 1, 1), why='strides')
    refuses(branches(conv(padding=1), nn.AvgPool2d(3, padding=1)), batch(2, 4, 1, 1), why='strides')
    refuses(branches(conv(k=6), avg(2, 5, padding=0)), batch(2, 4, 6, 6), why='strides')
    refuses(branches(avg(), conv(k=1)), why='18,144 multiplications in place of 6,552')
    refuses(branches(conv(padding=1, padding_mode='reflect'), avg()), why='pad in the same way')
    rep = merge(branches(conv(padding=1), conv(padding=1, padding_mode='reflect'), avg()))
    assert [o.members for o in rep.merged]==[['0.b0', '0.b2']] # and the one that reflects is added
    refuses(branches(conv(padding=1), nn.AdaptiveAvgPool2d((7,9))))
    refuses(Block(lambda m,x: m.a(x) + F.adaptive_avg_pool2d(x, (7,9)), a=conv(padding=1)))
    class Own(nn.AvgPool2d):
        def forward(self, x): return super().forward(x).relu()
    refuses(branches(conv(padding=1), Own(3, 1, 1)))
    block = Block(lambda m,x: m.a(x) + F.avg_pool1d(x, 3, 1, 1), a=nn.Linear(4, 4))
    refuses(block, batch(3, 4, 4), why='different kinds')
    block = Block(lambda m,x: m.a(x) + F.avg_pool2d(x, x.shape[-1], 1), a=conv(k=5))
    refuses(block, batch(1, 4, 5, 5), why='size of the input')

@pytest.mark.parametrize('kind', ['register_forward_hook', 'register_forward_pre_hook', 'register_full_backward_hook'])
def test_pool_hooks(kind):
    block = branches(conv(padding=1), avg())
    getattr(block.b1, kind)(lambda *args: None)
    refuses(block, why='has a hook')

def test_pools_alone():
    "There is no layer whose dtype and device a new one could take"
    refuses(branches(avg(), avg((3,1), padding=(1,0)), nn.Identity()))
    refuses(nn.Sequential(branches(avg(), nn.BatchNorm2d(4)), nn.ReLU()))
    rep = merge(Block(lambda m,x: m.b(x) - m.p(m.b(x)), b=conv(k=1), p=avg()))
    assert not rep.merged

def test_pool_shared():
    "It has no weights that others could need, so it may be called anywhere"
    pool = avg()
    rep = merges(Block(lambda m,x: m.pool(m.a(x) + m.pool(x)), a=conv(padding=1), pool=pool))
    assert rep.merged[0].members==['0.a', '0.pool']
    rep = merge(nn.Sequential(branches(conv(padding=1), pool), nn.Sigmoid(), branches(conv(padding=1), pool)))
    assert [r.name for r in rep.merged]==['0.0.b0_merged'] # in the second part it goes by its name in the first

def test_pool_moved():
    "In other modules, and in a subclass that changes nothing"
    class Own(nn.AvgPool2d): pass
    pooled = Part(lambda m,x: F.avg_pool2d(x, 3, 1, 1))
    merges(branches(conv(padding=1), nn.Sequential(Own(3, 1, 1), conv(k=1)), pooled))

def pooling_dbb(groups, p):
    "A diverse branch block: a convolution, one of single pixels, one after the other, and an average"
    def point(o=4): return normed(conv(4, o, k=1, padding=p, groups=groups, bias=False))
    if groups==4: pooled = nn.Sequential(avg(padding=1), nn.BatchNorm2d(4))
    else: pooled = nn.Sequential(point(), avg(padding=1-p), nn.BatchNorm2d(4))
    return branches(normed(conv(padding=1, groups=groups, bias=False)), normed(conv(k=1, groups=groups, bias=False)),
        nn.Sequential(point(4), normed(conv(padding=1-p, groups=groups, bias=False))), pooled)

@pytest.mark.parametrize('groups', [1, 2, 4])
def test_diverse_branch_block(groups):
    rep = merges(pooling_dbb(groups, 1), others=[batch(1, 4, 3, 3), batch(3, 4, 1, 2)])
    assert len(rep.merged[0].members)==6
    # where layers that have a shift don't pad, what comes after them pads it
    merged = merge(pooling_dbb(groups, 0)).merged
    pooled = ['0.b3.0', '0.b3.1'] if groups==4 else [] # nothing is shifted before it is pooled
    assert [r.members for r in merged]==[['0.b0.0', '0.b1.0', *pooled]]

def test_numbers():
    def f(m, x): return 3 - 2*m.a(x)/5 + torch.sub(m.b(x), x, alpha=.3) - (-x) + 1
    merges(Block(f, a=conv(padding=1), b=conv(k=1)))

def test_factor():
    def block(*shape, f=lambda m,x: m.a(x)*m.g + x):
        return Block(f, a=conv(padding=1), g=nn.Parameter(torch.randn(shape)))
    for shape in (4,1,1), (1,4,1,1), (1,), (): merges(block(*shape))
    refuses(block(4), batch(2, 4, 4, 4), why='another axis')
    refuses(block(4, 1, 4), batch(2, 4, 4, 4), why='another axis')
    refuses(block(4, 1, 1, f=lambda m,x: (m.a(x)*m.g + x).relu()*m.g), why='used 2 times')
    refuses(block(4, 1, 1, f=lambda m,x: m.a(x)/m.g + x))

def test_in_place():
    def f(m, x):
        out = m.a(x)
        out += m.b(x)
        out -= x
        return out.mul_(2).add_(m.c(x))
    merges(Block(f, a=conv(padding=1), b=conv(k=1), c=nn.BatchNorm2d(4)))

def test_loop_from_zero():
    def f(m, x):
        out = 0
        for c in m.convs: out += c(x)
        return out
    rep = merges(Block(f, convs=nn.ModuleList([normed(conv(padding=1)) for _ in range(3)])))
    assert rep.merged[0].name=='0.convs_merged'

class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(4,1,1))
    def forward(self, x): return x*self.gamma

def test_nested():
    "As in FastViT's mixer: sums in sums, in modules of their own"
    inner = Block(lambda m,x: 0 + m.n(x), n=nn.BatchNorm2d(4))
    block = Block(lambda m,x: x + m.scale(m.a(x) - m.b(x)), a=repvgg(groups=4), b=inner, scale=Scaled())
    rep = merges(block)
    assert rep.merged[0].name=='0.a_merged' and '0.b.n' in rep.merged[0].members

def test_norm_after(): merges(Block(lambda m,x: m.n(m.a(x) + x), a=normed(conv(padding=1)), n=nn.BatchNorm2d(4)))
def test_norm_beside_its_input():
    merges(Block(lambda m,x: (lambda y: y + m.n(y))(m.a(x)), a=conv(padding=1), n=nn.BatchNorm2d(4)))

def test_two_in_one():
    "One after the other, in the same module"
    def f(m, x):
        y = m.act(m.a(x) + m.b(x) + x)
        return torch.cat([y, m.c(y) + m.n(y)], 1)
    rep = merges(Block(f, a=conv(padding=1), b=conv(k=1), act=nn.ReLU(), c=conv(padding=1), n=nn.BatchNorm2d(4)), n=2)
    assert {o.name for o in rep.merged}=={'0.a_merged', '0.c_merged'}

def test_block_in_block():
    inner = Block(lambda m,x: (m.a(x) + x).relu(), a=conv(padding=1))
    merges(Block(lambda m,x: (lambda y: y + m.b(y))(m.inner(x)), inner=inner, b=conv(padding=1)), n=2)

def test_part_of_a_sum(): merges(Block(lambda m,x: m.a(x) + m.b(x) + x.relu(), a=conv(padding=1), b=conv(k=1)))

# what has to stay

def test_other_readers():
    def read(m, x):
        y = m.a(x)
        return y + x + y.relu()
    refuses(Block(read, a=conv(padding=1)), why="what '0.a' makes is also used")
    def returned(m, x):
        y = m.a(x)
        return torch.stack([y + x, y])
    refuses(Block(returned, a=conv(padding=1)), why='also used elsewhere')

def test_ordinary_residual(): refuses(Block(lambda m,x: x + m.b(m.a(x).relu()), a=conv(padding=1), b=conv(padding=1)))
def test_other_sources(): refuses(Block(lambda m,x: m.a(x) + m.b(x.relu()), a=conv(padding=1), b=conv(padding=1)))
def test_broadcast(): refuses(Block(lambda m,x: m.a(x) + x, a=conv(k=(7,9))))
@pytest.mark.parametrize('m', [
    nn.ConvTranspose2d(4, 4, 3, padding=1), nn.LPPool2d(1, 1), nn.MaxPool2d(3, 1, 1), nn.Softmax(1)])
def test_other_layers(m): refuses(branches(m, conv(padding=1)))

@pytest.mark.parametrize('where', ['', 'a', 'a.0', 'drop', 'c'])
@pytest.mark.parametrize('kind', ['register_forward_hook', 'register_forward_pre_hook', 'register_full_backward_hook'])
def test_hooks(where, kind):
    block = Block(lambda m,x: m.drop(m.a(x) + m.c(x)), a=nn.Sequential(conv(padding=1)), c=nn.BatchNorm2d(4),
        drop=nn.Dropout())
    getattr(block.get_submodule(where), kind)(lambda *args: None)
    rep = merge(block)
    assert bool(rep.merged)==(where=='drop'), f'{rep} {rep.sums}'

def test_calls():
    shared = conv(padding=1)
    block = Block(lambda m,x: (m.a(x) + x).relu(), a=shared)
    refuses(nn.Sequential(block, block), why='used 2 times')
    refuses(nn.Sequential(block, shared), why='used 2 times')
    other = conv(padding=1)
    other.weight = shared.weight
    refuses(nn.Sequential(block, other), why='other uses')
    refuses(Block(lambda m,x: m.a(x) + x*m.a.weight.sum(), a=conv(padding=1)))
    refuses(Block(lambda m,x: (m.a(x) + x).relu()*m.a.weight.sum(), a=conv(padding=1)), why='other uses')

class Part(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f
    def forward(self, x): return self.f(self, x)

def test_choices():
    block = Block(lambda m,x: m.a(x) + x if x.sum()>0 else x, a=conv(padding=1))
    refuses(block, batch(1, 4, 7, 7).abs(), why="can't trace '0'")
    refuses(Block(lambda m,x: m.a(x) + x if len(x)>1 else x, a=conv(padding=1)), why="can't trace '0'")
    choose = Part(lambda m,x: x if x.shape[-1]>2 else -x)
    refuses(Block(lambda m,x: m.c(m.a(x)) + x, a=conv(padding=1), c=choose), why="can't trace '0'")

def test_size():
    refuses(Block(lambda m,x: m.a(x) + x*x.shape[-1], a=conv(padding=1)), why='size of the input')
    block = Block(lambda m,x: m.a(x) + m.c(x), a=conv(padding=1), c=Part(lambda m,x: x/x.size(2)))
    refuses(block, why='size of the input')
    refuses(Block(lambda m,x: torch.add(m.a(x), x, alpha=len(x.shape)), a=conv(padding=1)), why="can't trace")
    refuses(Block(lambda m,x: torch.add(m.a(x), x, alpha=x.ndim), a=conv(padding=1)), why='size of the input')

def test_size_with_other_users():
    "It isn't needed for the region alone, so it doesn't go with it"
    def f(m, x):
        s = x.shape[-1]
        return (m.a(x) + x*s).relu()*s
    refuses(Block(f, a=conv(padding=1)), why='size of the input')
    def f(m, x):
        s = x.shape[-1]
        t = s*2
        return (m.a(x)*t + x).relu() + s
    refuses(Block(f, a=conv(padding=1)), why='size of the input')
    def f(m, x):
        s = x.shape[-1]
        return (m.a(x) + F.avg_pool2d(x, s, 1)).relu()*s
    refuses(Block(f, a=conv(k=5)), batch(2, 4, 5, 5), why='size of the input')

def test_stores():
    def f(m, x):
        m.seen = m.a(x) + x
        return m.seen.relu()
    refuses(Block(f, a=conv(padding=1)), why='stores something')
    def f(m, x):
        m.seen.append(len(m.seen))
        return m.a(x) + x
    block = Block(f, a=conv(padding=1))
    block.seen = []
    refuses(block, why='stores something')
    stores = Part(lambda m,x: setattr(m, 'n', [x]) or x)
    block = Block(lambda m,x: m.a(x) + x + m.c(x), a=conv(padding=1), c=stores)
    refuses(block, why='a forward sets attributes of')
    refuses(Block(lambda m,x: (m.a(x) + x).relu() + torch.ones(9).double(), a=conv(padding=1)), why='stores something')
    merges(Block(lambda m,x: (m.a(x) + x).relu() + torch.ones(9, dtype=x.dtype), a=conv(padding=1)))

class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = conv(padding=1)
    def forward(self, x, scale=None): return self.a(x) + (x if scale is None else x*scale)

def test_signature(): refuses(Optional(), why='more than tensors')

class Called(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = conv(padding=1)
    def __call__(self, x): return super().__call__(x).relu()
    def forward(self, x): return self.a(x) + x

def test_own_call(): refuses(Called(), why='a way of its own')

def test_root():
    "In a copy the model itself becomes another one, in place it can't"
    net,x = branches(conv(padding=1), nn.Identity()).double().eval(),images
    folder = BN_Folder(merge=True, verify=False)
    want = tensors(net, x)
    assert difference(want, tensors(folder.fold(net, x), x))<1e-9
    assert folder.plan(net, x).sums==folder.report.sums and len(folder.report.merged)==1
    assert folder.fold(net, x, inplace=True) is net
    assert "the model's own forward" in folder.report.sums[0].reason and not folder.report.merged
    assert difference(want, tensors(net, x))==0

def test_root_and_parts():
    "A sum of the model itself, of what a part adds up"
    parts = dict(part=branches(normed(conv(padding=1)), nn.BatchNorm2d(4)), a=conv(padding=1), b=normed(conv(k=1)))
    net = live(Block(lambda m,x: (lambda y: m.a(y) + m.b(y))(m.part(x).relu()), **parts))
    for verify in (False,True):
        folder = BN_Folder(merge=True, verify=verify)
        folded = folder.fold(net, images)
        assert len(folder.report.merged)==2 and not folder.report.kept, folder.report
        assert {o.name for o in folder.report.merged}=={n for n,m in folded.named_modules() if type(m) is nn.Conv2d}
        for x in (images, batch(1, 4, 3, 3)): assert difference(tensors(net, x), tensors(folded, x))<1e-9

def test_unused_parameters():
    refuses(Block(lambda m,x: m.a(x) + x, a=conv(padding=1), aux=conv()), why="doesn't use")
    merges(Block(lambda m,x: m.a(x) + x, a=conv(padding=1), aux=nn.ReLU()))

def test_weights_read_from_outside():
    "Whoever reads the first parameter of a module that is rewritten would find another"
    block = Block(lambda m,x: (m.a(x) + x).relu() + m.b(x), b=nn.Conv2d(4, 4, 1), a=conv(padding=1))
    refuses(Block(lambda m,x: m.inner(x) * next(m.inner.parameters()).sum(), inner=block), why='also reads the weights')

def test_dead_ends():
    "A part that writes into what it is given comes first"
    def f(m, x):
        m.first(x)
        y = m.a(x) + x
        return y + m.same(x).sin()
    first = Block(lambda m,x: (x.add_(1), 0)[1])
    refuses(Block(f, first=first, a=conv(padding=1), same=nn.Identity()), why='writes into')

def test_written():
    def f(m, x):
        y = m.a(x)
        x.relu_()
        return y + m.b(x)
    refuses(Block(f, a=conv(padding=1), b=conv(padding=1)))
    def f(m, x):
        y = m.a(x) + m.b(x)
        x.relu_()
        return y + x
    merges(Block(f, a=conv(padding=1), b=conv(padding=1)))
    def f(m, x):
        y,z = m.a(x),m.b(x)
        m.act(x)
        return y + z
    refuses(Block(f, a=conv(padding=1), b=conv(padding=1), act=nn.ReLU(True)), why='writes into')

def test_written_input():
    "The caller looks again at what the block writes into"
    def plus(m, x):
        x += m.a(x)
        return x.relu()
    def add_(m, x): return x.add_(m.a(x)).relu()
    for f,why in (plus, 'does something else'), (add_, 'writes into'):
        refuses(Block(lambda m,x: (lambda y: m.inner(y) + y)(x.sin()), inner=Block(f, a=conv(padding=1))), why=why)
    merges(Block(lambda m,x: m.inner(x.sin()), inner=Block(plus, a=conv(padding=1))))
    refuses(Block(lambda m,x: m.inner(x.sin()), inner=Block(add_, a=conv(padding=1))), why='writes into')

def test_alias():
    "Another name for what is written into"
    def f(m, x):
        y = m.a(x)
        z = y
        z += m.b(x)
        return z.relu() + y
    refuses(Block(f, a=conv(padding=1), b=conv(padding=1)), why='does something else')
    def f(m, x):
        y = m.a(x)
        z = y.add_(m.b(x))
        return z.relu() + y
    refuses(Block(f, a=conv(padding=1), b=conv(padding=1)), why='used elsewhere')

def test_computed():
    normed_weight = nn.utils.parametrizations.weight_norm(conv(padding=1))
    refuses(branches(normed_weight, conv(padding=1)), why='computes its weight')
    class Own(nn.Conv2d):
        def forward(self, x): return super().forward(x).relu()
    refuses(branches(Own(4, 4, 1), conv(padding=1)))

def test_layers():
    refuses(branches(conv(padding=1), nn.Identity()), why='leaves that out', layers=[nn.Linear])
    merges(branches(conv(padding=1), nn.Identity()), layers=[nn.Conv2d])

def test_container():
    ends = Block(lambda m,x: (x, m.a(x)), a=conv(padding=1)),Block(lambda m,x: x[0] + x[1])
    refuses(nn.Sequential(*ends), why="different parts of '0'")

def test_autocast():
    "A context isn't part of a trace"
    def f(m, x):
        with torch.autocast('cpu', torch.bfloat16): y = m.a(x) + m.b(x)
        return y.float()*m.c(x)
    net = nn.Sequential(Block(f, a=conv(padding=1), b=conv(padding=1), c=conv(padding=1)), nn.ReLU()).eval()
    folder = BN_Folder(merge=True, verify=False)
    folded = folder.fold(net, images.float())
    assert not folder.report.merged and torch.equal(folded(images.float()), net(images.float()))

def test_reshaping_nothing():
    "For a batch of vectors, flatten hands on what it is given, but not for others"
    refuses(Block(lambda m,x: m.f(m.a(x)) + x, a=nn.Linear(4, 4), f=nn.Flatten()), batch(3, 4), why='size of the input')
    merges(Block(lambda m,x: m.f(m.a(x)) + x, a=nn.Linear(4, 4), f=nn.Sequential()), batch(3, 4))

def test_several_values():
    "In and out"
    def f(m, x): return m.inner((x, x.sin()))
    def g(m, x):
        x,y = x
        return dict(a=m.a(y) + y, b=[x, m.n(x) + m.b(x)])
    def joined(m, x):
        y = f(m, x)
        return torch.cat([y['a'], *y['b']])
    inner = Block(g, a=conv(padding=1), b=conv(k=1), n=nn.BatchNorm2d(4))
    rep = merges(Block(joined, inner=inner), n=2)
    assert {o.name for o in rep.merged}=={'0.inner.a_merged', '0.inner.b_merged'}

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = conv(padding=1)
    def forward(self, x, y): return self.a(x) + y

def test_one_value_twice():
    "Two inputs that happen to be one value are still two"
    refuses(Block(lambda m,x: m.inner(x, x), inner=Two()), why="doesn't show what goes in")

def test_forward_called():
    inner = Block(lambda m,x: m.a(x) + x, a=conv(padding=1))
    merges(Block(lambda m,x: m.inner.forward(x).relu() + x, inner=inner))

def test_overflow():
    net = nn.Sequential(branches(conv(padding=1), conv(padding=1))).half().eval()
    for m in net[0].children(): m.weight.data.fill_(4e4)
    folder = BN_Folder(merge=True, verify=False)
    folder.fold(net, torch.zeros(1,4,5,5).half())
    assert "float16 can't hold" in folder.report.sums[0].reason

def test_dtypes():
    def f(m, x): return m.a(x.float()) + m.b(x.double())
    net = nn.Sequential(Block(f, a=conv(padding=1), b=conv(padding=1).double()))
    folder = BN_Folder(merge=True, verify=False)
    folder.fold(net, torch.zeros(1,4,5,5))
    assert not folder.report.merged

def test_no_example():
    "One is inferred where there are no norms, too"
    folder = BN_Folder(merge=True)
    folder.fold(nn.Sequential(branches(conv(padding=1), conv(padding=1)), nn.ReLU()).eval())
    assert len(folder.report.merged)==1 and folder.report.max_err is not None

# what comes back

def test_layer_keeps():
    "What the new layer takes over from the largest of the old ones"
    net = nn.Sequential(repvgg().train()).to(memory_format=torch.channels_last)
    live(net)
    net[0].a.requires_grad_(False)
    folded = BN_Folder(merge=True).fold(net, images.contiguous(memory_format=torch.channels_last))
    new = folded[0].a_merged
    assert type(new) is nn.Conv2d and not new.weight.requires_grad and not new.bias.requires_grad
    assert new.weight.is_contiguous(memory_format=torch.channels_last)
    assert list(folded.state_dict())==['0.a_merged.weight', '0.a_merged.bias']
    assert not any(m.training for m in folded.modules())
    assert [n for n,_ in folded.named_modules()]==['', '0', '0.a_merged'] and 'Block' in repr(folded)

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32])
def test_dtype(dtype):
    net = live(nn.Sequential(repvgg(), nn.ReLU(), repvgg())).to(dtype)
    folder,x = BN_Folder(merge=True),images.to(dtype)
    folded = folder.fold(net, x)
    assert len(folder.report.merged)==2 and folded[0].a_merged.weight.dtype==dtype
    assert difference(*([o.double() for o in tensors(m, x)] for m in (net, folded)))<20*torch.finfo(dtype).eps

def test_random_state():
    net,before = live(nn.Sequential(repvgg())),torch.get_rng_state()
    BN_Folder(merge=True).fold(net, images)
    assert torch.equal(before, torch.get_rng_state())

def mixed(m, x): return torch.cat([m.a(x) + x, m.list[1](x), x*m.g], 1)

def test_elsewhere(tmp_path):
    "What was merged is saved, copied, exported and loaded where fastfold is not installed"
    layers = nn.ModuleList([nn.Identity(), conv(padding=1)])
    more = Block(mixed, a=conv(padding=1), list=layers, g=nn.Parameter(torch.randn(4,1,1)))
    net = live(nn.Sequential(repvgg(), nn.ReLU(), more, conv(12)))
    folded = BN_Folder(merge=True).fold(net, images)
    want = tensors(folded, images)
    for again in (deepcopy(folded), pickle.loads(pickle.dumps(folded)),
            torch.export.export(folded, (images,)).module(), torch.jit.trace(folded, images)):
        assert difference(want, tensors(again, images))==0
    torch.save((folded, images, want[0]), tmp_path/'m.pt')
    code = f"""import sys
sys.modules['fastfold'] = None
import torch
m,x,want = torch.load({str(tmp_path/'m.pt')!r}, weights_only=False)
assert torch.equal(m(x), want) and m(x).shape==(2,4,5,7)
assert not any(k.startswith('fastfold.') for k in sys.modules)"""
    subprocess.run([sys.executable, '-c', code], check=True, cwd=tmp_path)

def test_undo_after_moving():
    net = live(nn.Sequential(repvgg(), nn.ReLU(), conv()))
    want,folder,old = tensors(net, images),BN_Folder(merge=True),dict(net.named_modules())
    folder.fold(net, images, inplace=True)
    net.float()
    folder.unfold()
    assert all(p.dtype==torch.float32 for p in net.parameters()) and dict(net.named_modules())==old
    assert difference(want, [t.double() for t in tensors(net, images.float())])<1e-5

def test_fold_again_in_place():
    "The second time, a norm goes into what was merged the first time"
    block = Block(lambda m,x: m.a(x) + x, a=nn.Sequential(conv(padding=1)))
    net = live(nn.Sequential(block, nn.BatchNorm2d(4), nn.ReLU()))
    want,before,folder = tensors(net, images),state(net),BN_Folder(merge=True)
    for n in 0,1:
        folder.fold(net, images, inplace=True)
        assert len(folder.report.folded)==n and difference(want, tensors(net, images))<1e-9
    assert type(net[0].a_merged) is nn.Conv2d
    folder.unfold()
    check_same(before, state(net))

def test_training_flags():
    net = live(nn.Sequential(repvgg(), nn.ReLU())).train()
    net[0].a.eval()
    flags = {n:m.training for n,m in net.named_modules()}
    folder = BN_Folder(merge=True)
    folder.fold(net, images, inplace=True)
    assert net[0].training and net.training
    folder.unfold()
    assert {n:m.training for n,m in net.named_modules()}==flags

def test_buffers():
    "A buffer that isn't saved stays one that isn't"
    block = Block(lambda m,x: (m.a(x) + x).relu()*m.t, a=conv(padding=1))
    block.register_buffer('t', torch.tensor(2., dtype=torch.float64), persistent=False)
    folded = BN_Folder(merge=True).fold(nn.Sequential(block).double().eval(), images)
    assert dict(folded.named_buffers()).keys()=={'0.t'} and '0.t' not in folded.state_dict()

def test_shared_place():
    "A module registered twice is replaced in both places"
    class Twice(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.one,self.names = block,nn.ModuleDict(dict(same=block))
        def forward(self, x): return self.one(x)
    twice = live(Twice(repvgg()))
    folded = BN_Folder(merge=True).fold(twice, images)
    assert folded.one is folded.names['same'] and difference(tensors(twice, images), tensors(folded, images))<1e-9

def test_one_wrong(monkeypatch):
    "A merge that goes wrong is taken back, the others stay"
    from fastfold.merge import rewrite as room
    net,right = live(nn.Sequential(repvgg(), nn.ReLU(), repvgg(), nn.ReLU(), repvgg())),room.merged_layer
    target = BN_Folder().fold(net, images)[2].a[0].weight
    def wrong(base, k): return right(base, replace(k, bias=k.bias+1) if torch.equal(base.weight, target) else k)
    monkeypatch.setattr(room, 'merged_layer', wrong)
    before,folder = state(net),BN_Folder(merge=True)
    with pytest.warns(UserWarning, match='is not merged'): folded = folder.fold(net, images)
    assert [o.name for o in folder.report.merged]==['4.a_merged', '0.a_merged']
    assert 'changed the output' in folder.report.sums[-1].reason
    assert difference(tensors(net, images), tensors(folded, images))<1e-9
    with pytest.warns(UserWarning, match='is not merged'): folder.fold(net, images, inplace=True)
    folder.unfold()
    check_same(before, state(net))

def test_failure_leaves_no_trace(monkeypatch):
    from fastfold.merge import rewrite as room
    def fails(*args): raise RuntimeError('no luck')
    net = live(nn.Sequential(repvgg(), nn.ReLU()))
    before = state(net)
    monkeypatch.setattr(room, 'rewritten', fails)
    with pytest.raises(RuntimeError, match='no luck'): BN_Folder(merge=True).fold(net, images, inplace=True)
    check_same(before, state(net))

# layers with rules in `handlers`

rule = LayerRule(conv_axis, conv_obstacle, kernel=kernel_of)
no_kernel = LayerRule(conv_axis, conv_obstacle)

class Logs(nn.Conv2d):
    "Does what its class does, in a forward of its own"
    def forward(self, x):
        y = super().forward(x)
        return y.clone()

class Swaps(nn.Linear):
    "The same for a Linear"
    def forward(self, x): return x@self.weight.t() + self.bias

class Rolls(nn.Conv2d):
    "Looks at images from another place"
    def forward(self, x): return super().forward(x.roll(1, -1))

class Crops(nn.Conv2d):
    "Returns less than a plain convolution"
    def forward(self, x): return super().forward(x)[...,1:]

class Evens(nn.Conv2d):
    "Makes the sizes of images even, as TensorFlow's padding does for this stride"
    def forward(self, x): return super().forward(F.pad(x, [0, x.shape[-1]%2, 0, x.shape[-2]%2]))

class Clamps(nn.Conv2d):
    "Is a plain layer for small inputs"
    def forward(self, x): return super().forward(x.clamp(-6, 6))

def logs(i=4, o=4, k=3, cls=Logs, **kwargs): return cls(i, o, k, **kwargs)
more = [batch(3, 4, 5, 6, seed=1), batch(1, 4, 8, 8, seed=2), batch(1, 4, 3, 3, seed=3)]

@pytest.mark.parametrize('kw', [{}, dict(groups=2), dict(bias=False), dict(padding_mode='reflect'), dict(stride=2)])
def test_ruled(kw):
    "Beside a plain layer, before a norm, and after one"
    same = {k:v for k,v in kw.items() if k in ('stride', 'groups')}
    ms = normed(logs(padding=1, **kw)),normed(conv(k=1, **same)),logs(k=1, **same)
    rep = merges(branches(*ms), others=more, handlers={Logs:rule})
    assert rep.merged[0].kind=='Conv2d' and '0.b0.0' in rep.merged[0].members
    block = Block(lambda m,x: m.c(m.a(x) + x), a=logs(padding=1), c=nn.BatchNorm2d(4))
    merges(block, others=more, handlers={Logs:rule})

def test_ruled_alone():
    "A sum of such layers only, and one after the other"
    merges(branches(logs(padding=1), logs(k=1)), others=more, handlers={Logs:rule})
    two = nn.Sequential(logs(k=1, bias=False), logs(padding=1))
    merges(branches(conv(padding=1), two), others=more, handlers={Logs:rule})
    merges(branches(logs(padding=1), nn.AvgPool2d(3, 1, 1)), others=more, handlers={Logs:rule})

@pytest.mark.parametrize('x', [batch(3, 4), batch(3, 5, 4)])
def test_ruled_linear(x):
    linear = LayerRule(kernel=kernel_of)
    merges(branches(Swaps(4, 4), nn.Linear(4, 4), nn.Identity()), x, handlers={Swaps:linear})

def test_ruled_by_name():
    "A rule may go by the full name of the class"
    merges(branches(logs(padding=1), conv(k=1)), others=more, handlers={f'{Logs.__module__}.{Logs.__qualname__}':rule})

def test_ruled_otherwise():
    "A layer whose rule has no kernel stays, and the norm behind it is folded by its rule"
    block = branches(normed(Rolls(4, 4, 3, padding=1)), normed(conv(k=1)))
    rep = merge(block, others=more, handlers={Rolls:no_kernel})
    assert [o.why.key for o in rep.sums]==['rule'] and 'Rolls' in rep.sums[0].reason and len(rep.folded)==2
    refuses(branches(Crops(4, 4, 3, padding=1), conv(k=(1,2))), handlers={Crops:no_kernel}, why='has a rule')

def test_ruled_by_size():
    "With images of even sizes, it is the same"
    block = branches(Evens(4, 4, 2, stride=2), Evens(4, 4, 2, stride=2))
    refuses(block, batch(2, 4, 8, 6), [batch(2, 4, 7, 9)], handlers={Evens:no_kernel}, why='has a rule')

def test_ruled_by_value():
    "With small numbers, it is the same"
    block = branches(Clamps(4, 4, 3, padding=1), conv(k=1))
    refuses(block, others=[images*10], handlers={Clamps:no_kernel}, why='has a rule')

def test_ruled_inside():
    "Where the sum with such a layer stays, a smaller one inside merges"
    def forward(m, x): return m.c(m.a(x) + m.b(x)) + x
    block = Block(forward, a=conv(padding=1), b=conv(k=1), c=Rolls(4, 4, 1))
    rep = merge(block, others=more, handlers={Rolls:no_kernel})
    assert len(rep.merged)==1 and rep.merged[0].members==['0.a', '0.b']

def test_unruled():
    "Without a rule, what a class of its own does isn't a layer"
    rep = merge(branches(logs(padding=1), conv(k=1)))
    assert not rep.merged

def test_own_rule_for_plain():
    "A rule for a class of PyTorch needs no comparison"
    merges(branches(normed(conv(padding=1)), conv(k=1)), others=more, handlers={nn.Conv2d:rule})

# sums that share a part

@pytest.mark.parametrize('asks,hook', [(True, False), (False, True)])
def test_shared_part(asks, hook):
    "Two sums that begin in a part which can't be followed: neither is merged"
    class Part(Block):
        def forward(self, x):
            if asks and isinstance(x, tuple): x, = x
            return self.a(x),self.b(x)
    part = Part(None, a=conv(padding=1), b=conv(padding=1))
    if hook: part.register_forward_pre_hook(lambda m,args: None)
    def forward(m, x):
        a,b = m.part(x)
        return (a + x).relu()*(b + x).sigmoid()
    rep = merge(Block(forward, part=part))
    assert len(rep.sums)==2 and {o.why.key for o in rep.sums}=={'trace' if asks else 'hooked'}

# whole networks

def test_example():
    "Without norms, and without an example batch"
    net = nn.Sequential(branches(nn.Linear(4, 4), nn.Identity()), nn.ReLU()).eval()
    folder = BN_Folder(merge=True)
    folded,x = folder.fold(net),torch.randn(2, 4)
    assert len(folder.report.merged)==1 and torch.allclose(net(x), folded(x), atol=1e-6)

def test_again():
    "What is merged already stays as it is"
    net = live(nn.Sequential(repvgg(), nn.ReLU(), repvgg()))
    folder = BN_Folder(merge=True)
    folded = folder.fold(net, images)
    again = folder.fold(folded, images)
    assert not folder.report.sums and difference(tensors(folded, images), tensors(again, images))==0

@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(nets(sums=True))
def test_random_sum(net): check(net, merge=True)
