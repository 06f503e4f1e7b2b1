"""Small networks whose path, numbers or shapes depend on the input: a fold made from one example may be wrong on
others. `test_inputs` folds them.

`NETS` lists `Case`s. An input is a tuple of positional arguments, or `In(args, kw)` where it has keywords as well.
`Case.kw` are the keywords of the example; an other input that is a plain tuple gets no keywords."""
import contextvars, math, warnings
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from fractions import Fraction
from itertools import product
from types import SimpleNamespace
from typing import Any, Callable
import numpy as np, torch
import torch.nn.functional as F
from torch import nn, Tensor

@dataclass
class In:
    "An input with keywords"
    args:tuple = ()
    kw:dict = field(default_factory=dict)

@dataclass
class Case:
    name:str
    kind:str
    make:Callable[[],nn.Module]
    example:tuple|None            # None: fold without a batch
    others:list                   # tuples, or In(args, kw)
    kw:dict = field(default_factory=dict)
    must_fold:bool = False        # the fold is exact on every input, and a good tool folds all norms but `stays`
    look:Callable[[nn.Module,Any],list[Tensor]]|None = None # what else to compare: (model, output) -> tensors
    stays:int = 0                 # so many norms may stay with `must_fold`

NETS:list[Case] = []

def net(kind, example, others, kw=None, look=None, must_fold=False, stays=0, make=None):
    "Make a case of a class"
    def _net(cls):
        name = f'{kind}.{cls.__name__}'
        NETS.append(Case(name, kind, make or cls, example, others, kw or {}, must_fold, look, stays))
        return cls
    return _net

def plain(example, others, **kw): return net('plain', example, others, must_fold=True, **kw)

gen = torch.Generator().manual_seed(0)
def r(*shape, at=0.): return torch.randn(shape, generator=gen, dtype=torch.float64)*.5 + at
def im(b=2, s=8, at=0., c=3): return r(b, c, s, s, at=at)  # an image
def vec(b=2, n=6, at=0.): return r(b, n, at=at)
def seq(b=2, l=4, n=6, at=0.): return r(b, l, n, at=at)
HI,LO = 1.,-1.                                              # means that make sums positive or negative
def big(b=2, s=8, c=3): return im(b, s, c=c).clamp(-.9,.9)*9   # max is far above 1
def small(b=2, s=8, c=3): return im(b, s, c=c).clamp(-.9,.9)   # max is below 1
def kept(*names): return lambda m, out: [getattr(m, n) for n in names]

def conv(i=3, o=8, k=3, s=1): return nn.Conv2d(i, o, k, s, k//2)

class CB(nn.Module):
    "A convolution and a norm"
    n = 8 # channels of the norm
    def __init__(self, i=3, o=8):
        super().__init__()
        self.conv = conv(i, o)
        self.bn = nn.BatchNorm2d(self.n)

class CB4(CB): n = 4

class LB(nn.Module):
    "A linear layer and a norm"
    def __init__(self, i=6, o=8):
        super().__init__()
        self.l = nn.Linear(i, o)
        self.bn = nn.BatchNorm1d(o)

# ---------------------------------------------------------------- a number chooses which channels

@net('channels', (im(), 0), [(im(), 1), (im(3), 1), (im(2,12), 0)])
class SliceByInput(CB4):
    def forward(self, x, t):
        y = self.conv(x)
        return self.bn(y[:, 4*t:4*t+4])

@net('channels', (im(), torch.tensor(0)), [(im(), torch.tensor(1)), (im(3), torch.tensor(1)), (im(), torch.tensor(0))])
class SliceByItem(CB4):
    def forward(self, x, t):
        t = t.item()
        return self.bn(self.conv(x)[:, 4*t:4*t+4])

@net('channels', (im(at=HI),), [(im(at=LO),), (im(3, at=LO),), (im(1, at=HI),)])
class ChunkBySign(CB4):
    def forward(self, x): return self.bn(self.conv(x).chunk(2, 1)[int(x.sum()>0)])

@net('channels', (im(),), [(im(at=HI),), (im(at=LO),), (im(3, 12),), (im(1, at=-3.),)])
class TopkAsList(CB4):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(3, 8)
    def forward(self, x):
        idx = self.gate(x.mean((0,2,3))).topk(4).indices.tolist()
        return self.bn(self.conv(x)[:, idx])

@net('channels', (im(), 1), [(im(), 2), (im(3), 0), (im(2, 5), -1)])
class RollByInput(CB):
    def forward(self, x, k): return self.bn(self.conv(x).roll(k, 1))

@net('channels', (im(),), [(im(2, 16),), (im(1, 16),), (im(3, 9),)])
class SliceByWidth(CB4):
    def forward(self, x):
        i = x.shape[-1]//8-1
        return self.bn(self.conv(x)[:, 4*i:4*i+4])

# relatives
@net('channels', (im(), torch.tensor([0,1,2,3])),
    [(im(), torch.tensor([4,5,6,7])), (im(3), torch.tensor([3,2,1,0])), (im(1), torch.tensor([0,2,4,6]))])
class IndexTensorInput(CB4):
    def forward(self, x, idx): return self.bn(self.conv(x).index_select(1, idx))

@net('channels', (im(), [0,1,2,3]), [(im(), [4,5,6,7]), (im(3), [3,2,1,0]), (im(), [0,1,2,3])])
class IndexListInput(CB4):
    def forward(self, x, idx): return self.bn(self.conv(x)[:, idx])

@net('channels', (im(), np.array([1,1,1,1,0,0,0,0], bool)),
    [(im(), np.array([0,1]*4, bool)), (im(1), np.array([0]*4+[1]*4, bool)), (im(3), np.array([1,1,0,0]*2, bool))])
class NumpyMask(CB4):
    def forward(self, x, mask): return self.bn(self.conv(x)[:, np.flatnonzero(mask).tolist()])

@net('channels', (im(), 'left'), [(im(), 'right'), (im(3, 6), 'right'), (im(1), 'left')])
class SplitByString(CB4):
    def forward(self, x, eye):
        both = dict(zip(('left','right'), self.conv(x).split(4, 1)))
        return self.bn(both[eye])

@net('channels', (r(2,2,3,8,8),), [(r(3,2,3,8,8),), (r(4,2,3,6,6),), (r(1,2,3,8,8),)])
class EvenOrOddBatch(CB4):
    "Half of the channels by the parity of the batch, as in checkerboard masks"
    def forward(self, x):
        i = len(x)%2
        return self.bn(self.conv(x.flatten(0, 1))[:, i::2])

@net('channels', (im(), 2), [(im(), 4), (im(3), 1), (im(2, 6), 8)])
class ShuffleByGroups(CB):
    def forward(self, x, groups):
        y = self.conv(x)
        b,c,h,w = y.shape
        y = y.view(b, groups, c//groups, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.bn(y)

@net('channels', (im(),), [In((im(),), dict(mirror=True)), In((im(3),), dict(mirror=True)), (im(1),)])
class FlipByFlag(CB):
    def forward(self, x, mirror=False):
        y = self.conv(x)
        if mirror: y = y.flip(1)
        return self.bn(y)

@net('channels', (im(at=LO),), [(im(at=HI),), (im(3, at=HI),), (im(1, at=LO),)])
class ExpertOfView(nn.Module):
    "A router takes the channels of one expert out of those of all"
    def __init__(self):
        super().__init__()
        self.conv = conv(3, 16)
        self.bn = nn.BatchNorm2d(8)
    def forward(self, x):
        y = self.conv(x).unflatten(1, (2,8))
        best = int(torch.stack([-x.mean(), x.mean()]).argmax())
        return torch.relu(self.bn(y.select(1, best)))

@net('channels', (im(), 0), [(im(), 3), (im(3), 5), (im(1), 0)])
class CatRotated(CB):
    def forward(self, x, k):
        parts = self.conv(x).unbind(1)
        return self.bn(torch.stack(parts[k:]+parts[:k], 1))

@net('channels', (im(),), [(im(2, 9),), (im(3, 7),), (im(1, 10),)])
class NarrowByArea(CB4):
    def forward(self, x):
        start = min(x.numel()//x.shape[0]//192, 1)*2 if x.shape[-1]%2==0 else 4
        return self.bn(torch.narrow(self.conv(x), 1, start, 4))

@net('channels', (im(), 0, True), [(im(), 1, True), (im(), 1, False), (im(3), 0, False)])
class SliceOfTable(CB4):
    "Slices looked up in a dict by a tuple of a number and a flag"
    table = {(0,True): slice(0,4), (1,True): slice(4,8), (0,False): slice(2,6), (1,False): slice(1,5)}
    def forward(self, x, i, f): return self.bn(self.conv(x)[:, self.table[i,f]])

@net('channels', (im(),), [(im(at=2.),), (im(at=-2.),), (im(3, at=HI),)])
class SortChannels(CB):
    "Channels in the order of what a gate makes of this batch"
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(3, 8)
    def forward(self, x):
        order = sorted(range(8), key=self.gate(x.mean((0,2,3))).tolist().__getitem__)
        y = self.conv(x)
        return self.bn(torch.cat([y[:, i:i+1] for i in order], 1))

# ---------------------------------------------------------------- a number goes into the arithmetic

@net('arithmetic', (small(),), [(big(),), (big(3, 6),), (small(1),)])
class DivIfLarge(CB):
    def forward(self, x):
        y = self.conv(x)
        if x.max()>1: y = y/255
        return self.bn(y)

@net('arithmetic', (im(),), [(im(2, 4),), (im(3, 16),), (im(1),)])
class NpSqrtWidth(CB):
    def forward(self, x): return self.bn(self.conv(x)/np.sqrt(x.shape[-1]))

@net('arithmetic', (im(),), [(im(2, 9),), (im(3, 16),), (im(1),)])
class BoolAdded(CB):
    def forward(self, x): return self.bn(self.conv(x)+(x.shape[-1]>8))

@net('arithmetic', (im(),), [(im(3),), (im(5, 6),), (im(1),)])
class NumpyScalarFactor(CB):
    def forward(self, x): return self.bn(self.conv(x)*np.float64(len(x)))

class Scale(nn.Module):
    def forward(self, y, s): return y*s

@net('arithmetic', (im(),), [(im(2, 4),), (im(3, 16),), (im(1),)])
class NumberToChild(CB):
    def __init__(self):
        super().__init__()
        self.scale = Scale()
    def forward(self, x): return self.bn(self.scale(self.conv(x), 1/x.shape[-1]))

class Stats(nn.Module):
    def forward(self, x): return float(x.std())

@net('arithmetic', (im(),), [(big(),), (im(3, 6)*3,), (im(1)*.1,)])
class NumberFromSibling(CB):
    def __init__(self):
        super().__init__()
        self.stats = Stats()
    def forward(self, x):
        s = self.stats(x)
        return self.bn(self.conv(x)/s)

class Temper(nn.Module):
    temperature = 1.
    def forward(self, y): return y/self.temperature

@net('arithmetic', (im(),), [(im(2, 4),), (im(3, 16),), (im(1),)])
class ToldByModuleAttribute(CB):
    def __init__(self):
        super().__init__()
        self.temper = Temper()
    def forward(self, x):
        self.temper.temperature = x.shape[-1]**.5
        return self.bn(self.temper(self.conv(x)))

class Told(nn.Module):
    "Scales by what another one has written into a plain object or a dict"
    def __init__(self, ctx):
        super().__init__()
        self.ctx = ctx
    def forward(self, y):
        n = self.ctx['n'] if isinstance(self.ctx, dict) else self.ctx.n
        return y*n

@net('arithmetic', (im(),), [(im(3),), (im(5, 6),), (im(1),)])
class ToldByObject(CB):
    def __init__(self):
        super().__init__()
        self.ctx = SimpleNamespace(n=1)
        self.told = Told(self.ctx)
    def forward(self, x):
        self.ctx.n = x.shape[0]
        return self.bn(self.told(self.conv(x)))

@net('arithmetic', (im(),), [(im(2, 4),), (im(3, 16),), (im(1),)])
class ToldByDict(CB):
    def __init__(self):
        super().__init__()
        self.meta = {}
        self.told = Told(self.meta)
    def forward(self, x):
        self.meta['n'] = x.shape[2]/8
        return self.bn(self.told(self.conv(x)))

@net('arithmetic', ([im(), im()],), [([im()]*3,), ([im(1, 6)],), ([im(), im(), im(), im()],)])
class LenOfListInput(CB):
    "The mean of what few or many views give, as if there were two"
    def forward(self, xs):
        y = self.conv(torch.stack(list(xs)).mean(0))
        return self.bn(y*len(xs))

@net('arithmetic', (r(2,2,3,8,8),), [(r(2,3,3,8,8),), (r(2,1,3,6,6),), (r(1,4,3,8,8),)])
class LenOfUnbind(CB):
    def forward(self, x):
        frames = x.unbind(1)
        return self.bn(self.conv(frames[0])/len(frames))

@net('arithmetic', (im(), True), [(im(), False), (im(3, 6), False), (im(1), True)])
class TrueAsFactor(CB):
    def forward(self, x, double): return self.bn(self.conv(x)*(1+double))

@net('arithmetic', (im(), 'low'), [(im(), 'high'), (im(3, 6), 'off'), (im(1), 'low')])
class StringToFactor(CB):
    def forward(self, x, gain): return self.bn(self.conv(x)*{'low':.5, 'high':2., 'off':1.}[gain])

@net('arithmetic', (im(), np.float64(2.)), [(im(), np.float64(.1)), (im(3, 6), np.float32(3)), (im(1), np.int64(5))])
class NumpyNumberInput(CB):
    def forward(self, x, s): return self.bn(self.conv(x)*float(s) + s)

# relatives
@net('arithmetic', (im(), {'sigma':.7}), [(im(), {'sigma':2.}), (im(3, 6), {'sigma':.01}), (im(1), {'sigma':.7})])
class SigmaOfDiffusion(CB):
    "Preconditioning as in EDM, with the noise level in a dict of conditions"
    def forward(self, x, cond):
        sigma = cond['sigma']
        c_in,c_out = 1/math.sqrt(sigma**2+.25),sigma*.5/math.sqrt(sigma**2+.25)
        return self.bn(self.conv(c_in*x)*c_out)

@net('arithmetic', (im(), .3), [(im(), .9), (im(3, 6), 0.), (im(1), 1.)])
class ProgressiveAlpha(CB):
    "Fades a new branch in, as a progressive GAN does"
    def __init__(self):
        super().__init__()
        self.new = conv()
    def forward(self, x, alpha): return self.bn(torch.lerp(self.conv(x), self.new(x), alpha))

@net('arithmetic', (im(), (.3, 4)), [(im(), (.9, 4)), (im(3, 6), (.1, 1)), (im(1), (.5, 4))])
class AlphaInTuple(CB):
    "Fades a layer in, with alpha and the step of the schedule in one tuple"
    def forward(self, x, schedule):
        alpha,step = schedule
        return self.bn(alpha*self.conv(x) + (step>2))

@net('arithmetic', (im(), 2), [(im(), 3), (im(3), 1), (im(1), -2)])
class AlphaOfAdd(CB):
    def __init__(self):
        super().__init__()
        self.other = conv()
    def forward(self, x, k): return self.bn(torch.add(self.conv(x), self.other(x), alpha=k))

@net('arithmetic', (im(),), [(im(2, 4),), (im(3, 12),), (im(1),)])
class SumOfPositions(nn.Module):
    "A sum over positions, not a mean: how much of the shift each one carries depends on their number"
    def __init__(self):
        super().__init__()
        self.conv = conv()
        self.bn = nn.BatchNorm1d(8)
    def forward(self, x): return self.bn(self.conv(x).sum((2,3)))

@net('arithmetic', ([im(), im()],), [([im(), im(), im()],), ([im(1, 6)],), ([im()]*4,)])
class SumOfListInput(CB):
    def forward(self, xs): return self.bn(sum(self.conv(x) for x in xs))

class Shift(nn.Module):
    def at(self, t): self.amount = math.log1p(t)
    def forward(self, y): return y+self.amount

@net('arithmetic', (im(), np.int64(100)), [(im(), np.int64(7)), (im(3, 6), np.int64(999)), (im(1), 1)])
class TimestepOffset(CB):
    "A number that a child is told by a method"
    def __init__(self):
        super().__init__()
        self.shift = Shift()
    def forward(self, x, t):
        self.shift.at(t)
        return self.bn(self.shift(self.conv(x)))

@net('arithmetic', (im(),), [(im(at=HI),), (im(3, 6, at=LO),), (im(1)*4,)])
class MeanByItem(CB):
    def forward(self, x): return self.bn(self.conv(x)-x.mean().item())

class Standardize(nn.Module):
    def forward(self, y, stats):
        mean,std = stats
        return (y-mean)/std

@net('arithmetic', (im(),), [(im(at=HI),), (im(3, 6, at=LO),), (im(1)*4,)])
class StatsInTuple(CB):
    "Numbers handed to a child in a tuple"
    def __init__(self):
        super().__init__()
        self.standardize = Standardize()
    def forward(self, x):
        stats = x.mean().item(),x.std().item()
        return self.bn(self.standardize(self.conv(x), stats))

@net('arithmetic', (im(),), [(im(at=HI),), (im(3, 6, at=LO),), (im(1)*4,)])
class MeanByNumpy(CB):
    def forward(self, x): return self.bn(self.conv(x)*(2+x.detach().cpu().numpy().mean()))

@net('arithmetic', (im(),), [(im(2, 4),), (im(3, 16),), (im(1),)])
class TensorOfSize(CB):
    def forward(self, x): return self.bn(self.conv(x)/torch.tensor(x.shape[-1]).sqrt())

@net('arithmetic', (im(),), [(im(2, 4),), (im(3, 16),), (im(1),)])
class RampBySize(CB):
    def forward(self, x):
        ramp = torch.arange(8, device=x.device).view(1, -1, 1, 1)/x.shape[-1]
        return self.bn(self.conv(x)+ramp)

@net('arithmetic', (im(), torch.tensor([3.,3.])),
    [(im(), torch.tensor([1.,5.])), (im(3), torch.tensor([1.,2.,3.])), (im(1), torch.tensor([8.]))])
class LengthsOfItems(CB):
    def forward(self, x, lengths): return self.bn(self.conv(x)/lengths.view(-1, 1, 1, 1))

@net('arithmetic', (im(), 'a cat'), [(im(), 'a photo of a cat'), (im(3), ''), (im(1), 'a dog')])
class LenOfPrompt(CB):
    def forward(self, x, prompt): return self.bn(self.conv(x)*(1+len(prompt.split())))

resolution = contextvars.ContextVar('resolution', default=1.)

class Aware(nn.Module):
    def forward(self, y): return y*resolution.get()

@net('arithmetic', (im(),), [(im(2, 4),), (im(3, 16),), (im(1),)])
class ToldByContextVar(CB):
    def __init__(self):
        super().__init__()
        self.aware = Aware()
    def forward(self, x):
        token = resolution.set(x.shape[-1]/8)
        try: return self.bn(self.aware(self.conv(x)))
        finally: resolution.reset(token)

@net('arithmetic', (im(),), [(im(3),), (im(5, 6),), (im(1),)])
class FractionInClosure(CB):
    def __init__(self):
        super().__init__()
        self.act = nn.Identity()
    def forward(self, x):
        share = Fraction(1, len(x))
        scale = lambda y: torch.mul(y, other=float(share))
        return self.bn(self.act(scale(self.conv(x))))

@net('arithmetic', (im(), SimpleNamespace(scale=2.)),
    [(im(), SimpleNamespace(scale=.5)), (im(3), SimpleNamespace(scale=-1.)), (im(1), SimpleNamespace(scale=2.))])
class ConfigInput(CB):
    def forward(self, x, cfg): return self.bn(self.conv(x)*cfg.scale)

class Grid:
    size = 8
    @property
    def gain(self): return 8/self.size

class OnGrid(nn.Module):
    def __init__(self, grid):
        super().__init__()
        self.grid = grid
    def forward(self, y): return y*self.grid.gain

@net('arithmetic', (im(),), [(im(2, 4),), (im(3, 16),), (im(1),)])
class ToldByProperty(CB):
    "A size that the forward writes down, and a property computes with"
    def __init__(self):
        super().__init__()
        self.grid = Grid()
        self.on_grid = OnGrid(self.grid)
    def forward(self, x):
        self.grid.size = x.shape[-1]
        return self.bn(self.on_grid(self.conv(x)))

class Through(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
    def forward(self, y, options): return self.inner(y, options[0]**-.5)

class Stem(nn.Module):
    def forward(self, x):
        self.extent = tuple(x.shape[2:])
        return x

@net('arithmetic', (im(),), [(im(2, 4),), (im(3, 16),), (im(1),)])
class AskedOfSibling(CB):
    "A size that a sibling has kept"
    def __init__(self):
        super().__init__()
        self.stem,self.scale = Stem(),Scale()
    def forward(self, x):
        y = self.conv(self.stem(x))
        return self.bn(self.scale(y, 8/max(self.stem.extent)))

@net('arithmetic', (im(),), [(im(2, 4),), (im(3, 16),), (im(1),)])
class TwoChildrenDown(CB):
    "A size in a list of options, handed through a child to its child"
    def __init__(self):
        super().__init__()
        self.outer = Through(Scale())
    def forward(self, x): return self.bn(self.outer(self.conv(x), [x.shape[-1], 'px']))

# ---------------------------------------------------------------- another way through

@net('path', (small(),), [(big(),), (big(3, 6),), (small(1),)])
class EarlyExit(CB):
    def forward(self, x):
        y = self.conv(x)
        if x.max()>1: return y
        return self.bn(y)

@net('path', (im(),), [(im(2, 16),), (im(3, 12),), (im(1),)])
class Conv3OrConv5(CB):
    def __init__(self):
        super().__init__()
        self.conv5 = conv(k=5)
    def forward(self, x): return self.bn((self.conv if x.shape[-1]<=8 else self.conv5)(x))

@net('path', (im(c=8),), [(im(2, 4, c=8),), (im(3, 6, c=8),), (im(1, c=8),)])
class ConvOrNothing(CB):
    def __init__(self): super().__init__(8, 8)
    def forward(self, x):
        if x.shape[-1]>6: x = self.conv(x)
        return self.bn(x)

@net('path', (im(),), [In((im(),), dict(group=True)), In((im(3, 6),), dict(group=True)), (im(1),)])
class BatchOrGroup(CB):
    def __init__(self):
        super().__init__()
        self.gn = nn.GroupNorm(2, 8)
    def forward(self, x, group=False):
        y = self.conv(x)
        return self.gn(y) if group else self.bn(y)

@net('path', (im(c=8), 1), [(im(c=8), 2), (im(3, 6, c=8), 3), (im(c=8), 0)])
class StepsByInput(CB):
    def __init__(self): super().__init__(8, 8)
    def forward(self, x, n):
        for _ in range(n): x = self.conv(x)
        return self.bn(x)

@net('path', (im(c=8),), [(im(2, 16, c=8),), (im(3, 32, c=8),), (im(1, 4, c=8),)])
class WhileLarge(CB):
    def __init__(self):
        super().__init__(8, 8)
        self.conv.stride = (2,2)
    def forward(self, x):
        while x.shape[-1]>4: x = self.conv(x)
        return self.bn(x)

@net('path', (im(c=8).clamp(-1,1)*1.5,), [(im(c=8).clamp(-1,1)*3,), (big(3, 6, c=8),), (small(c=8),)])
class WhileValue(CB):
    def __init__(self): super().__init__(8, 8)
    def forward(self, x):
        top = x.max().item()
        while top>1: x,top = self.conv(x),top/2
        return self.bn(x)

class UpBlock(nn.Module):
    "As in fastai's and Milesi's U-Net: bring what was halved back to the size of the skip"
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.bn = nn.BatchNorm2d(8)
    def forward(self, y, skip):
        y = self.up(y)
        dh,dw = skip.shape[2]-y.shape[2],skip.shape[3]-y.shape[3]
        if dh or dw: y = F.pad(y, [0,dw,0,dh])
        return torch.cat([self.bn(y), skip], 1)

@net('path', (im(),), [(im(2, 9),), (im(3, 7),), (im(1),)])
class UNetPadOdd(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv()
        self.up = UpBlock()
    def forward(self, x):
        skip = torch.relu(self.stem(x))
        return self.up(F.max_pool2d(skip, 2), skip)

@net('path', (im(), 0), [(im(), 1), (im(3, 6), 2), (im(1), 0)])
class ExpertsOfWidths(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(conv(3, h), nn.ReLU(), conv(h, 8)) for h in (4,8,12))
        self.bn = nn.BatchNorm2d(8)
    def forward(self, x, i): return self.bn(self.experts[i](x))

@net('path', (im(), False), [(im(), True), (im(3, 6), True), (im(1), False)])
class TwoExperts(nn.Module):
    "Experts of different widths by their names, and one norm after both"
    def __init__(self):
        super().__init__()
        self.small = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 8))
        self.large = nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 8))
        self.bn = nn.BatchNorm2d(8)
    def forward(self, x, hard): return self.bn(self.large(x) if hard else self.small(x))

class Aux(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv(8, 8)
        self.bn = nn.BatchNorm2d(8)
    def forward(self, y, act=False):
        y = self.conv(y)
        if act: y = torch.relu(y)
        return self.bn(y)

@net('path', (im(),), [(im(2, 12),), (im(3, 16),), (im(1),)])
class OptionNotReached(nn.Module):
    "The part is run with large images only, and then with an option"
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU())
        self.aux = Aux()
    def forward(self, x):
        y = self.stem(x)
        if x.shape[-1]>8: y = self.aux(y, act=True)
        return y.mean((2,3))

@net('path', (im(),), [In((im(),), dict(pre_act=True)), In((im(3, 6),), dict(pre_act=True)), (im(1),)])
class OwnFlagDefault(CB):
    def forward(self, x, pre_act=False):
        y = self.conv(x)
        if pre_act: y = F.relu(y)
        return self.bn(y)

@net('path', (im(),), [(im(2, 12),), (im(3, 16),), (im(1),)])
class BlockWholeOrPart(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(conv(), nn.BatchNorm2d(8))
    def forward(self, x):
        if x.shape[-1]>8: return self.block[0](x)
        return self.block(x)

# relatives
@net('path', (im(),), [(im(), r(2,1,8,8).gt(0).double()), In((im(3),), dict(mask=r(3,1,8,8).gt(0).double())), (im(1),)])
class OptionalMask(CB):
    def forward(self, x, mask=None):
        y = self.conv(x)
        if mask is not None: y = y*mask
        return self.bn(y)

@net('path', (im(),), [(im(), vec()), In((im(3),), dict(cond=vec(3))), (im(1),)])
class OptionalCondition(CB):
    def __init__(self):
        super().__init__()
        self.film = nn.Linear(6, 8)
    def forward(self, x, cond=None):
        y = self.conv(x)
        if cond is not None: y = y*self.film(cond)[:,:,None,None]
        return self.bn(y)

@net('path', (im(), 'photo'), [(im(), 'sketch'), (im(3, 6), 'sketch'), (im(1), 'photo')])
class DomainNorms(nn.Module):
    "Domain-specific batch normalization: one layer, a norm for each domain"
    def __init__(self):
        super().__init__()
        self.conv = conv()
        self.bns = nn.ModuleDict({k: nn.BatchNorm2d(8) for k in ('photo','sketch')})
    def forward(self, x, domain): return torch.relu(self.bns[domain](self.conv(x)))

@net('path', (im(), False), [(im(), True), (im(3, 6), True), (im(1), False)])
class CleanOrAdversarial(nn.Module):
    "AdvProp: a second norm for adversarial images"
    def __init__(self):
        super().__init__()
        self.conv = conv()
        self.bn,self.bn_adv = nn.BatchNorm2d(8),nn.BatchNorm2d(8)
    def forward(self, x, adv):
        y = self.conv(x)
        return torch.relu(self.bn_adv(y) if adv else self.bn(y))

@net('path', (im(), 4), [(im(), 8), (im(3, 6), 8), (im(1), 4)])
class Slimmable(nn.Module):
    "A slimmable network: a norm for each width"
    def __init__(self):
        super().__init__()
        self.conv = conv()
        self.bns = nn.ModuleDict({str(w): nn.BatchNorm2d(w) for w in (4,8)})
    def forward(self, x, width): return self.bns[str(width)](self.conv(x)[:, :width])

@net('path', (im(c=8), 1), [(im(c=8), 2), (im(3, 6, c=8), 3), (im(1, c=8), 1)])
class ExitDepth(nn.Module):
    "Exits after so many layers share the last norm"
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(conv(8, 8) for _ in range(3))
        self.norm = nn.BatchNorm2d(8)
    def forward(self, x, depth):
        for layer in self.layers[:depth]: x = layer(x)
        return self.norm(x)

@net('path', (im(c=8), .1), [(im(c=8), .5), (im(3, 6, c=8), .9), (im(1, c=8), .1)])
class ExitByQuality(nn.Module):
    "The same with layers of their own names, and residuals"
    def __init__(self):
        super().__init__()
        self.layer1,self.layer2 = conv(8, 8),conv(8, 8)
        self.norm = nn.BatchNorm2d(8)
    def forward(self, x, quality):
        y = self.layer1(x)
        if quality>.3: y = y+self.layer2(torch.relu(y))
        return self.norm(y)

@net('path', (im(),), [(im()*200,), (im(3, 6)*300,), (im(1),)])
class ClampIfHuge(CB):
    "A guard against overflow, as in T5"
    def forward(self, x):
        y = self.conv(x)
        if x.abs().max()>50: y = y.clamp(-50, 50)
        return self.bn(y)

def with_nan(x):
    x[0,0,2,2] = float('nan')
    return x

@net('path', (im(),), [(with_nan(im()),), (with_nan(im(3, 6)),), (im(1),)])
class NanToNum(CB):
    def forward(self, x):
        y = self.conv(x)
        if torch.isnan(x).any(): y = torch.nan_to_num(y)
        return self.bn(y)

@net('path', (im(),), [In((im(),), dict(features=True)), In((im(3),), dict(features=True)), (im(1),)])
class ReturnFeatures(CB):
    def forward(self, x, features=False):
        y = self.conv(x)
        z = torch.relu(self.bn(y))
        return (z, y) if features else z

@net('path', (im(c=8),), [(im(2, 7, c=8),), (im(3, 9, c=8),), (im(1, c=8),)])
class SkipIfSameSize(nn.Module):
    "A residual where the sizes agree, before the norm"
    def __init__(self):
        super().__init__()
        self.conv = nn.ConvTranspose2d(8, 8, 2, 2)
        self.bn = nn.BatchNorm2d(8)
    def forward(self, x):
        y = self.conv(F.max_pool2d(x, 2))
        if y.shape[2:]!=x.shape[2:]: y = F.interpolate(y, x.shape[2:], mode='bicubic') + x
        return self.bn(y)

@net('path', (im(), im(s=4, c=8)), [(im(), im(s=8, c=8)), (im(3), im(3, 8, c=8)), (im(1), im(1, 4, c=8))])
class TryExcept(CB):
    "Adds what fits, and goes on where it doesn't"
    def forward(self, x, skip):
        y = self.conv(x)
        try: y = y + skip
        except RuntimeError: pass
        return self.bn(y)

@net('path', (im(), 'none'), [(im(), 'relu'), (im(3, 6), 'tanh'), (im(1), 'none')])
class ActivationByName(CB):
    acts = {'none': lambda y: y, 'relu': F.relu, 'tanh': torch.tanh}
    def forward(self, x, act): return self.bn(self.acts[act](self.conv(x)))

@net('path', (im(), 'plain'), [(im(), 'bare'), (im(3, 6), 'bare'), (im(1), 'plain')])
class MethodByName(CB):
    def forward(self, x, mode): return getattr(self, f'forward_{mode}')(self.conv(x))
    def forward_plain(self, y): return self.bn(y)
    def forward_bare(self, y): return torch.tanh(y)

@net('path', (im(),), [In((im(),), dict(skip_norms=True)), In((im(3, 6),), dict(skip_norms=True)), (im(1),)])
class SkipsNormsOnRequest(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([conv(), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8), nn.BatchNorm2d(8)])
    def forward(self, x, skip_norms=False):
        for layer in self.layers:
            if skip_norms and isinstance(layer, nn.BatchNorm2d): continue
            x = layer(x)
        return x

@net('path', (im(),), [In((im(),), dict(penalty=True)), In((im(3, 6),), dict(penalty=True)), (im(1),)])
class ReadsNormOnRequest(CB):
    "Network slimming: an L1 penalty on the norm's weights"
    def forward(self, x, penalty=False):
        z = self.bn(self.conv(x))
        return (z, self.bn.weight.abs().sum()) if penalty else z

@net('path', (im(),), [In((im(),), dict(back=True)), In((im(3, 6),), dict(back=True)), (im(1),)])
class TiedWeight(CB):
    "An autoencoder whose decoder is the encoder's weight, where it is asked for"
    def forward(self, x, back=False):
        z = self.bn(self.conv(x))
        return F.conv_transpose2d(torch.relu(z), self.conv.weight, padding=1) if back else z

@net('path', (r(2,1,3,8,8),), [(r(2,2,3,8,8),), (r(1,3,3,6,6),), (r(3,1,3,8,8),)])
class RecurrentState(CB):
    "One frame, or several"
    def __init__(self): super().__init__(3, 8)
    def forward(self, x):
        h = None
        for frame in x.unbind(1):
            y = self.conv(frame)
            h = self.bn(y) if h is None else self.bn(torch.tanh(y)+h)
        return h

@net('path', (im(),), [In((im(),), dict(pool='max')), In((im(3, 6),), dict(pool='max')), (im(1),)])
class PoolByName(CB):
    def forward(self, x, pool='avg'):
        f = F.max_pool2d if pool=='max' else F.avg_pool2d
        return self.bn(f(self.conv(x), 2))

@net('path', (im(),), [(im(2, 9),), (im(3, 7),), (im(1, 6),)])
class PadAheadOfConv(nn.Module):
    "The norm is folded ahead into a layer; with odd sizes, zeros come in between"
    def __init__(self):
        super().__init__()
        self.stem = conv()
        self.bn = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 8, 2, 2)
    def forward(self, x):
        y = self.bn(torch.relu(self.stem(x)))
        if y.shape[-1]%2: y = F.pad(y, (0,1,0,1))
        return self.down(y)

@net('path', (im(),), [(im(at=LO),), (im(3, 6, at=LO),), (im(1, at=HI),)])
class WhereByMean(CB):
    def forward(self, x):
        y = self.conv(x)
        return self.bn(torch.where(x.mean()>0, y, y.flip(1)))

@net('path', (im(at=.5),), [(im(), im()), (im(3, 6), im(3, 6)), (im(1),)])
class SiameseOrSingle(CB):
    def forward(self, a, b=None):
        y = self.conv(a)
        if b is not None: y = (y-self.conv(b)).abs()
        return self.bn(y)

class Patch(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = conv()
        self.norm = nn.BatchNorm2d(8)
    def embed(self, x): return self.proj(x)
    def forward(self, x): return self.norm(self.embed(x))

@net('path', (im(),), [In((im(),), dict(raw=True)), In((im(3, 6),), dict(raw=True)), (im(1),)])
class MethodOfPart(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = Patch()
    def forward(self, x, raw=False): return self.patch.embed(x) if raw else self.patch(x)

@net('path', (im(c=8), 1), [(im(c=8), 2), (im(3, 6, c=8), 3), (im(1, c=8), 0)])
class NormAgain(CB):
    "The same norm several times"
    def __init__(self): super().__init__(8, 8)
    def forward(self, x, n):
        y = self.conv(x)
        for _ in range(n): y = self.bn(y)
        return y

@net('path', (im(),), [(im().requires_grad_(),), (im(3).requires_grad_(),), (im(1),)])
class AsksForGradient(CB):
    def forward(self, x):
        y = self.conv(x)
        if x.requires_grad: y = torch.sigmoid(y)
        return self.bn(y)

# an inferred example has no flags, and no more than one size
@net('path', None, [(im(2, 8),), (im(3, 96),), (im(1, 16),)])
class InferredSizeBranch(CB):
    def forward(self, x):
        y = self.conv(x)
        if min(x.shape[2:])<32: y = F.leaky_relu(y)
        return self.bn(y)

class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1,self.bn,self.fc2 = conv(8, 8, 1),nn.BatchNorm2d(8),conv(8, 8, 1)
    def forward(self, y, scale=1):
        s = self.bn(self.fc1(y.mean((2,3), keepdim=True))*scale)
        return torch.sigmoid(self.fc2(torch.relu(s)))*y

@net('path', (im(),), [(im(2, 12),), (im(3, 16),), (im(1),)])
class ScaleOfUnreached(nn.Module):
    "An unreached part is later given a number"
    def __init__(self):
        super().__init__()
        self.stem = conv()
        self.gate = Gate()
    def forward(self, x):
        y = self.stem(x)
        if x.shape[-1]>8: y = self.gate(y, scale=x.shape[-1]/8)
        return y

# ---------------------------------------------------------------- axes that the example can't tell apart

@net('axes', (im(2, 1),), [(im(2, 2),), (im(3, 4),), (im(1, 1),)])
class MapToTokens(nn.Module):
    "A map of 1x1 looks the same as tokens"
    def __init__(self):
        super().__init__()
        self.conv = conv()
        self.bn = nn.BatchNorm1d(8)
    def forward(self, x):
        y = self.conv(x)
        t = y.reshape(len(y), -1, 8)
        return self.bn(t.flatten(0, 1))

@net('axes', (seq(2, 1),), [(seq(2, 3),), (seq(3, 2),), (seq(1, 1),)])
class OneToken(LB):
    def forward(self, x): return self.bn(self.l(x).reshape(len(x), 8, -1))

@net('axes', (im(2, 2),), [(im(2, 4),), (im(3, 8),), (im(1, 2),)])
class WindowsByReshape(CB):
    def forward(self, x): return self.bn(self.conv(x).reshape(-1, 8, 2, 2))

@net('axes', None, [(r(4,8,8),), (r(2,8),), (r(1,8,8),)])
class InferredLinearNorm(nn.Sequential):
    "On [N,C,L] with L==C, the layer works along another axis than the norm"
    def __init__(self): super().__init__(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())

# relatives
@net('axes', (r(2,8),), [(r(4,8,8),), (r(3,8),), (r(1,8,8),)])
class LinearNormGiven(LB):
    def __init__(self): super().__init__(8, 8)
    def forward(self, x): return self.bn(self.l(x))

@net('axes', (torch.tensor([1,2,3]),),
    [(torch.arange(16).view(2, 8)%10,), (torch.tensor([0]),), (torch.arange(8)[None],)])
class EmbeddingOfIds(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(10, 8)
        self.bn = nn.BatchNorm1d(8)
    def forward(self, ids): return self.bn(self.emb(ids))

@net('axes', (r(2,3,1,8),), [(r(1,3,1,8),), (r(3,3,1,5),), (r(2,3,1,1)[...,:1].expand(2,3,1,6).clone(),)])
class SqueezeTooMuch(nn.Module):
    "With a batch of one, `squeeze` takes that axis, too"
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, (1,3), padding=(0,1))
        self.bn = nn.BatchNorm1d(8)
    def forward(self, x): return self.bn(self.conv(x).squeeze())

@net('axes', (im(1),), [(im(2),), (im(3, 6),), (im(1, 4),)])
class BatchOfOne(nn.Module):
    "Pixels by channels, right for one image only"
    def __init__(self):
        super().__init__()
        self.conv = conv()
        self.bn = nn.BatchNorm1d(8)
    def forward(self, x): return self.bn(self.conv(x).view(8, -1).t())

@net('axes', ([im()],), [([im(), im()],), ([im(1, 4)]*3,), ([im(3, 6)],)])
class ScalesByView(nn.Module):
    "Right for one scale, mixed up for two"
    def __init__(self):
        super().__init__()
        self.conv = conv()
        self.bn = nn.BatchNorm1d(8)
    def forward(self, xs):
        y = torch.cat([self.conv(x).flatten(2) for x in xs], 1)
        return self.bn(y.view(len(y), 8, -1))

@net('axes', (r(2,6,4),), [(r(2,6,8),), (r(3,6,12),), (r(1,6,4),)])
class ClipsOfFour(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(6, 8, 3, padding=1)
        self.bn = nn.BatchNorm1d(8)
    def forward(self, x): return torch.relu(self.bn(self.conv(x).view(-1, 8, 4)))

@net('axes', (seq(2, 4),), [(seq(3, 4),), (seq(4, 2),), (seq(1, 2),)])
class LengthFirst(LB):
    "Time and batch are swapped by a view; larger batches come with the channels ahead"
    def forward(self, x):
        b,t,_ = x.shape
        y = self.l(x).view(t, b, 8)
        if b>2: y = y.view(t, 8, b).transpose(1, 2)
        return self.bn(y.reshape(-1, 8))

@net('axes', (im(2, 1),), [(im(2, 2),), (im(3, 4),), (im(1, 1),)])
class PixelShuffleView(CB4):
    "A subpixel layer by hand, whose order of axes a 1x1 map of one step doesn't show"
    def __init__(self): super().__init__(3, 4)
    def forward(self, x):
        y = self.conv(x)
        b,c,h,w = y.shape
        return self.bn(y.permute(0, 2, 3, 1).reshape(b, c, h, w))

# ---------------------------------------------------------------- memory order

@net('memory', (seq(2, 1),), [(seq(2, 4),), (seq(3, 2),), (seq(1, 3),)])
class ViewAfterTransposed(LB):
    def forward(self, x):
        z = self.bn(self.l(x).transpose(1, 2))
        return z.view(len(z), -1)

@net('memory', (seq(2, 1),), [(seq(2, 4),), (seq(3, 2),), (seq(1, 1),)])
class ContiguousBranch(LB):
    def forward(self, x):
        z = self.bn(self.l(x).transpose(1, 2))
        return z*2 if z.is_contiguous() else z*3

@net('memory', (seq(2, 1),), [(seq(2, 2),), (seq(3, 4),), (seq(1, 1),)])
class ViewAsComplex(LB):
    "Pairs of positions as complex numbers; a single one is doubled"
    def forward(self, x):
        z = self.bn(self.l(x).transpose(1, 2))
        if z.shape[-1]==1: return z.abs()
        return torch.view_as_complex(z.unflatten(-1, (-1,2))).abs()

# relatives
@net('memory', (seq(2, 1),), [(seq(2, 4),), (seq(3, 2),), (seq(1, 3),)])
class FlattenThenWrite(LB):
    "What is flat shares memory with what was contiguous, and is a copy of what wasn't"
    def forward(self, x):
        z = self.bn(self.l(x).transpose(1, 2))
        if z.shape[-1]>1: z.flatten(1).mul_(2)
        return z

@net('memory', (im(1),), [(im(2),), (im(3, 6),), (im(1, 4),)])
class SliceThenFlat(CB4):
    def forward(self, x): return self.bn(self.conv(x)[:, :4]).view(-1)

@net('memory', (vec(), 1), [(vec(), 4), (vec(3), 2), (vec(1), 3)])
class ExpandThenView(LB):
    def forward(self, x, n):
        z = self.bn(self.l(x)[:,:,None].expand(-1, -1, n))
        return z.view(len(z), -1)

@net('memory', (vec(), 1), [(vec(), 4), (vec(3), 2), (vec(1), 3)])
class ExpandThenWrite(LB):
    def forward(self, x, n):
        z = self.bn(self.l(x)[:,:,None].expand(-1, -1, n))
        if n>1: z.add_(torch.arange(n))
        return z

@net('memory', (seq(2, 1),), [(seq(2, 4),), (seq(3, 2),), (seq(1, 3),)])
class StrideInArithmetic(LB):
    def forward(self, x):
        z = self.bn(self.l(x).transpose(1, 2))
        return z*z.stride(1)

@net('memory', (seq(2, 1),), [(seq(2, 2),), (seq(3, 4),), (seq(1, 1),)])
class NumpyInMemoryOrder(LB):
    def forward(self, x):
        z = self.bn(self.l(x).transpose(1, 2))
        if x.shape[1]>1: return torch.from_numpy(z.detach().numpy().ravel(order='K').copy())
        return z.flatten()

@net('memory', (small(c=8),), [(big(c=8),), (big(3, 6, c=8),), (small(1, c=8),)])
class WritesIntoInput(nn.Module):
    "An Identity hands on the input itself, and what is then written goes there"
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(8)
        self.conv,self.skip = nn.Conv2d(8, 8, 1),nn.Conv2d(8, 8, 1)
    def forward(self, x):
        z = self.bn(x)
        if x.max()>1: z.mul_(.5)
        return self.conv(z) + self.skip(x)

@net('memory', (im(),),
    [(im().to(memory_format=torch.channels_last),), (im(3, 6).to(memory_format=torch.channels_last),), (im(1),)])
class ChannelsLastBranch(CB):
    def forward(self, x):
        y = self.conv(x)
        if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous(): y = y.flip(1)
        return self.bn(y)

@net('memory', (seq(2, 1),), [(seq(2, 2),), (seq(3, 4),), (seq(1, 1),)])
class AsStrided(LB):
    def forward(self, x):
        z = self.bn(self.l(x).transpose(1, 2))
        return z.as_strided((len(z), 8, x.shape[1]), (8*x.shape[1], x.shape[1], 1))

# ---------------------------------------------------------------- kept aside

@net('kept', (im(),), [(im(3),), (im(2, 6),), (im(1),)], look=kept('feat'))
class DetachedBefore(CB):
    def forward(self, x):
        y = self.conv(x)
        self.feat = y.detach()
        return self.bn(y)

@net('kept', (im(),), [(im(3),), (im(2, 6),), (im(1),)], look=kept('feat'))
class ClonedBefore(CB):
    def forward(self, x):
        y = self.conv(x)
        self.feat = y.clone()
        return self.bn(y)

@net('kept', (im(),), [(im(3),), (im(2, 6),), (im(1),)], look=kept('stat'))
class MeanBefore(CB):
    def forward(self, x):
        y = self.conv(x)
        self.stat = y.mean()
        return self.bn(y)

class AheadNet(nn.Module):
    "A norm that folds ahead"
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 8, 1)

@net('kept', (im(),), [(im(3),), (im(2, 6),), (im(1),)], look=kept('feat'))
class DetachedAhead(AheadNet):
    def forward(self, x):
        z = self.bn(torch.relu(self.stem(x)))
        self.feat = z.detach()
        return self.last(z)

@net('kept', (im(),), [(im(3),), (im(2, 6),), (im(1),)], look=kept('stat'))
class MeanAhead(AheadNet):
    def forward(self, x):
        z = self.bn(torch.relu(self.stem(x)))
        self.stat = z.mean((0,2,3)).clone()
        return self.last(z)

@net('kept', (im(),), [(im(3),), (im(2, 6),), (im(1),)], look=lambda m, out: list(m.feats))
class AppendedToList(CB):
    def __init__(self):
        super().__init__()
        self.feats = []
    def forward(self, x):
        y = self.conv(x)
        self.feats.append(y.detach().clone())
        return self.bn(y)

@net('kept', (im(),), [(im(3),), (im(2, 6),), (im(1),)])
class InReturnedObject(AheadNet):
    def forward(self, x):
        z = self.bn(torch.relu(self.stem(x)))
        return SimpleNamespace(logits=self.last(z).mean((2,3)), hidden=z.detach())

@dataclass
class Output:
    logits:Any
    extra:dict

@net('kept', (im(),), [(im(3),), (im(2, 6),), (im(1),)])
class InReturnedDataclass(CB):
    def forward(self, x):
        y = self.conv(x)
        return Output(self.bn(y).mean((2,3)), {'energy':[float(y.pow(2).mean())]})

@net('kept', (im(),), [(im(3),), (im(3, 6),), (im(1),)], look=kept('last'))
class NextCallReads(CB):
    last = 0.
    def forward(self, x):
        y = self.conv(x) + self.last
        self.last = y.mean().item()
        return self.bn(y)

# relatives
@net('kept', (im(),), [(im(3),), (im(3, 6),), (im(1),)])
class TurnsTaken(CB4):
    "Every other call takes the other half"
    turn = 0
    def forward(self, x):
        y = self.conv(x).chunk(2, 1)[self.turn]
        self.turn = 1-self.turn
        return self.bn(y)

@net('kept', (im(),), [(im(),), (im(2, at=HI),), (im(2, at=LO),)])
class PreviousFrame(CB):
    "The first call has no frame before it; the next ones subtract what the layer makes of it"
    prev = None
    def forward(self, x):
        y = self.conv(x)
        if self.prev is not None: y = y-self.conv(self.prev)
        self.prev = x
        return self.bn(y)

@net('kept', (im(),), [(im(),), (im(3),), (im(1, 6),)], look=kept('count'))
class CountsCalls(CB):
    "The mean of so many calls"
    count = 0
    def forward(self, x):
        self.count += 1
        return self.bn(self.conv(x)/self.count)

@net('kept', (im(),), [(im(3),), (im(3, 6),), (im(1),)], look=kept('level'))
class NextCallReadsAhead(AheadNet):
    "The level of what the norm gave, which the next call adds"
    level = None
    def forward(self, x):
        z = self.bn(torch.relu(self.stem(x)))
        out = self.last(z)
        if self.level is not None: out = out+self.level
        self.level = z.detach().mean()
        return out

@net('kept', (im(),), [(im(3),), (im(2, 6),), (im(1),)], look=lambda m, out: list(m.feats))
class AppendedAhead(AheadNet):
    def __init__(self):
        super().__init__()
        self.feats = []
    def forward(self, x):
        z = self.bn(torch.relu(self.stem(x)))
        self.feats.append(z.clone())
        return self.last(z)

@net('kept', (im(),), [(im(3),), (im(2, 6),), (im(1),)])
class InDataclassAhead(AheadNet):
    def forward(self, x):
        z = self.bn(torch.relu(self.stem(x)))
        return Output(self.last(z).mean((2,3)), {'pooled':[z.detach().mean((2,3))]})

class Bank:
    "A plain memory outside of the modules"
    def __init__(self): self.rows = []
    def add(self, t): self.rows = [*self.rows[-3:], t.detach().mean((2,3))]

@net('kept', (im(),), [(im(3),), (im(2, 6),), (im(1),)], look=lambda m, out: list(m.bank.rows))
class BankAhead(AheadNet):
    "Embeddings go into a memory bank"
    def __init__(self):
        super().__init__()
        self.bank = Bank()
    def forward(self, x):
        z = self.bn(torch.relu(self.stem(x)))
        self.bank.add(z)
        return self.last(z)

@net('kept', (im(),), [(im(3),), (im(2, 6),), (im(1),)], look=lambda m, out: [out[1]()])
class ClosureAhead(AheadNet):
    def forward(self, x):
        z = self.bn(torch.relu(self.stem(x)))
        h = z.detach()
        return self.last(z),lambda: h.mean((0,2,3))

@net('kept', (im(),), [(im(3),), (im(2, 6),), (im(1),)], look=lambda m, out: [m.ema])
class BufferAhead(AheadNet):
    "A centre that follows what the norm gives, as in DINO"
    def __init__(self):
        super().__init__()
        self.register_buffer('ema', torch.zeros(8))
    def forward(self, x):
        z = self.bn(torch.relu(self.stem(x)))
        if self.ema.any(): self.ema = .9*self.ema + .1*z.detach().mean((0,2,3))
        else: self.ema = z.detach().mean((0,2,3))
        return self.last(z)

@net('kept', (im(),), [(im(3),), (im(2, 6),), (im(1),)], look=kept('ema'))
class MovingAverage(CB):
    def __init__(self):
        super().__init__()
        self.register_buffer('ema', torch.zeros(8))
    def forward(self, x):
        y = self.conv(x)
        with torch.no_grad(): self.ema.mul_(.9).add_(y.mean((0,2,3)), alpha=.1)
        return self.bn(y)

@net('kept', (im(),), [In((im(3),), dict(debug=True)), In((im(2, 6),), dict(debug=True)), (im(1),)],
     look=lambda m, out: list(m.seen.values()))
class KeptOnRequest(CB):
    def __init__(self):
        super().__init__()
        self.seen = {}
    def forward(self, x, debug=False):
        y = self.conv(x)
        if debug: self.seen['conv'] = y.detach()
        return self.bn(y)

@net('kept', (im(),), [(im(3),), (im(2, 6),), (im(1),)], look=lambda m, out: [torch.tensor(v) for v in m.log])
class LoggedNumbers(CB):
    def __init__(self):
        super().__init__()
        self.log = deque(maxlen=3)
    def forward(self, x):
        y = self.conv(x)
        self.log.append(y.mean((0,2,3)).tolist())
        return self.bn(y)

@net('kept', (im(),), [(im(3),), (im(2, 6),), (im(1),)], look=lambda m, out: [torch.as_tensor(m.array)])
class KeptAsNumpy(AheadNet):
    def forward(self, x):
        z = self.bn(torch.relu(self.stem(x)))
        self.array = z.detach().cpu().numpy().copy()
        return self.last(z)

@net('kept', (im(),), [(im(3),), (im(2, 6),), (im(1),)], look=lambda m, out: [out[1]()])
class InReturnedClosure(CB):
    def forward(self, x):
        y = self.conv(x)
        return self.bn(y), partial(torch.mean, y.detach(), (0,2,3))

@net('kept', (im(),), [(im(),), (im(2),), (im(2, 6),)])
class CachedBySize(CB):
    "What was computed for a size is used again, the second time instead of the layer"
    def __init__(self):
        super().__init__()
        self.cache = {}
    def forward(self, x):
        key = x.shape[2:]
        if key not in self.cache: self.cache[key] = self.conv(torch.ones_like(x[:1]))
        return self.bn(self.conv(x)-self.cache[key])

# ---------------------------------------------------------------- plain: exact on every input

class Block(nn.Sequential):
    def __init__(self, i=3, o=8): super().__init__(conv(i, o), nn.BatchNorm2d(o), nn.ReLU())

@plain((im(),), [(im(3),), (im(2, 6),), (im(1, 11),)])
class AssertsChannels(CB):
    def forward(self, x):
        assert x.shape[1]==3, f'three channels, not {x.shape[1]}'
        return self.bn(self.conv(x))

@plain((im(),), [(im(3),), (im(2, 6),), (im(1, 11),)])
class RaisesIfNan(CB):
    def forward(self, x):
        if torch.isnan(x).any(): raise ValueError('nan in the input')
        return self.bn(self.conv(x))

@plain((im(),), [(im(3),), (im(2, 6),), (im(1, 11),)])
class PixelsInOneAxis(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv()
        self.bn = nn.BatchNorm1d(8)
    def forward(self, x):
        y = self.conv(x)
        B,C,H,W = y.shape
        return self.bn(y.view(B, C, -1)).view(B, C, H, W)

@plain((small(),), [(big(),), (big(3, 6),), (small(1),)])
class ScalesInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b = Block(),Block(8)
    def forward(self, x):
        if x.max()>1: x = x/255
        return self.b(self.a(x))

@plain((im(),), [(im(3, 10),), (im(2, 6),), (im(1, 12),)])
class PadsToWindows(nn.Module):
    "Pads to windows before an inner block, and crops what it gives"
    def __init__(self):
        super().__init__()
        self.stem,self.block = Block(),Block(8)
    def forward(self, x):
        y = self.stem(x)
        H,W = y.shape[2:]
        if H%4 or W%4: y = F.pad(y, (0, -W%4, 0, -H%4))
        B,C,h,w = y.shape
        t = y.view(B, C, h//4, 4, w//4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, C, 4, 4)
        t = self.block(t)
        t = t.view(B, h//4, w//4, C, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(B, C, h, w)
        return t[:, :, :H, :W]

@plain((im(),), [(im(3),), (im(2, 6),), (im(1, 11),)])
class SqrtOfChannels(CB):
    def forward(self, x):
        y = self.conv(x)
        return self.bn(y/math.sqrt(y.shape[1]))

@plain((im(),), [(im(3),), (im(2, 6),), (im(1, 11),)])
class ResizesAfter(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv(s=2)
        self.bn = nn.BatchNorm2d(8)
    def forward(self, x): return F.interpolate(self.bn(self.conv(x)), size=x.shape[-2:], mode='bilinear')

@plain((im(),), [(im(3, 12),), (im(2, 9),), (im(1),)])
class BothBranchesSame(CB):
    "Whichever way, the norm follows the layer"
    def forward(self, x):
        if x.shape[-1]>8: z = self.bn(self.conv(x))[..., ::2]
        else: z = torch.relu(self.bn(self.conv(x)))
        return z

@plain((im(),), [(r(3,8,8),), (im(3),), (im(1, 6),)])
class TakesOneItem(nn.Module):
    "One image without a batch, or a batch"
    def __init__(self):
        super().__init__()
        self.block = Block()
    def forward(self, x):
        single = x.dim()==3
        if single: x = x[None]
        y = self.block(x)
        return y[0] if single else y

@plain((im(),), [(im(3, 16),), (im(2, 12),), (im(1),)])
class PoolsBySize(CB):
    "The mean of windows whose size depends on that of the image"
    def forward(self, x): return self.bn(F.avg_pool2d(self.conv(x), x.shape[-1]//4))

@plain((r(2,2,3,8,8),), [(r(2,3,3,8,8),), (r(1,1,3,6,6),), (r(3,4,3,8,8),)])
class FrameByFrame(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()
    def forward(self, x): return torch.stack([self.block(x[:,t]) for t in range(x.shape[1])], 1).mean(1)

@plain(([im(), im()],), [([im()],), ([im(1, 6), im(1), im(1, 9)],), ([im(3), im(3, 4)],)])
class ListOfSizes(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()
    def forward(self, xs): return sum(self.block(x).mean((2,3)) for x in xs)/len(xs)

@plain((small(),), [(big(),), (big(3, 6),), (small(1),)])
class ExitAfterNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b = Block(),Block(8)
    def forward(self, x):
        y = self.a(x)
        z = self.b(y)
        return y if x.max()>1 else z

@plain((im(),),
    [In((im(),), dict(mask=r(2,1,8,8).gt(0).double())), In((im(3),), dict(mask=r(3,1,8,8).gt(0).double())),
    (im(1, 6),)])
class MaskAfterNorm(CB):
    def forward(self, x, mask=None):
        z = self.bn(self.conv(x))
        if mask is not None: z = z*mask
        return z

@plain((im(),), [In((im(),), dict(return_dict=True)), In((im(3, 6),), dict(return_dict=True)), (im(1),)])
class ReturnsDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.block,self.fc = Block(),nn.Linear(8, 2)
    def forward(self, x, return_dict=False):
        y = self.block(x)
        out = self.fc(y.mean((2,3)))
        return {'logits':out, 'features':y} if return_dict else out

@plain((im(), 'a'), [(im(), 'b'), (im(3, 6), 'b'), (im(1), 'a')])
class ReturnsOneOfTwo(nn.Module):
    "All heads run; a string says which one is wanted"
    def __init__(self):
        super().__init__()
        self.stem = Block()
        self.heads = nn.ModuleDict({k: nn.Sequential(conv(8), nn.BatchNorm2d(8)) for k in 'ab'})
    def forward(self, x, task):
        y = self.stem(x)
        return {k: head(y) for k,head in self.heads.items()}[task]

@plain((im(),), [(im(3, 12),), (im(2, 6),), (im(1),)])
class AddsResizedPositions(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos = nn.Parameter(torch.zeros(1, 3, 8, 8))
        self.block = Block()
    def forward(self, x):
        pos = self.pos if x.shape[-2:]==self.pos.shape[-2:] else F.interpolate(self.pos, x.shape[-2:])
        return self.block(x+pos)

@plain((im(),), [(im(3, 12),), (im(2, 9),), (im(1),)])
class CoordConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv(5)
        self.bn = nn.BatchNorm2d(8)
    def forward(self, x):
        b,_,h,w = x.shape
        ys,xs = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing='ij')
        grid = torch.stack([ys, xs]).to(x).expand(b, -1, -1, -1)
        return torch.relu(self.bn(self.conv(torch.cat([x, grid], 1))))

@plain((im(), 10), [(im(), 500), (im(3, 6), 0), (im(1), 10)])
class TimestepEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 3)
        self.block = Block()
    def forward(self, x, t):
        angles = t*torch.exp(-torch.arange(4, dtype=x.dtype))
        emb = self.fc(torch.cat([angles.sin(), angles.cos()]))
        return self.block(x+emb[:,None,None])

@plain((im(),), [(r(2,8,8,3),), (r(1,6,6,3),), (im(3),)])
class ChannelsAnywhere(CB):
    def forward(self, x):
        if x.shape[-1]==3: x = x.permute(0, 3, 1, 2)
        return self.bn(self.conv(x))

@plain((im(),), [(big(),), (big(3, 6),), (im(1, at=HI),)], stays=1)
class StandardizesInput(CB):
    "Nothing shows what becomes of a `float`"
    def forward(self, x):
        mean,std = x.mean().item(),max(float(x.std()), 1e-6)
        return torch.relu(self.bn(self.conv((x-mean)/std)))

@plain((im(c=8),), [(im(3, 6, c=8),), (im(2, 9, c=8),), (im(1, c=8),)])
class ResidualIfSame(nn.Module):
    "The sum comes after the norm"
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 2, padding=1)
        self.bn = nn.BatchNorm2d(8)
    def forward(self, x):
        z = self.bn(self.conv(x))[..., :-1, :-1]
        if z.shape==x.shape: z = z+x
        return z

@plain((im(),), [(im(5),), (im(3, 6),), (im(1),)])
class MicroBatches(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()
    def forward(self, x): return torch.cat([self.block(part) for part in x.split(2)])

@plain((im(2, 64),), [(im(3, 50),), (im(2, 33),), (im(1, 64),)])
class WarnsAboutSize(nn.Module):
    def __init__(self):
        super().__init__()
        self.block,self.fc = Block(),nn.Linear(8, 2)
    def forward(self, x):
        if x.shape[-1]%32:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                warnings.warn(f'{tuple(x.shape)} should be a multiple of 32')
        return self.fc(F.adaptive_avg_pool2d(self.block(x), 1).flatten(1))

@plain((seq(),), [(seq(3, 7),), (seq(2, 1),), (seq(1, 5),)])
class AttentionOfNormed(nn.Module):
    "Attention divides by the square root of a constant number of channels; tokens vary"
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(6, 24)
        self.bn = nn.BatchNorm1d(24)
    def forward(self, x):
        B,N,_ = x.shape
        qkv = self.bn(self.l(x).flatten(0, 1)).view(B, N, 3, 8)
        q,k,v = qkv.unbind(2)
        return ((q@k.transpose(1, 2))/math.sqrt(q.shape[-1])).softmax(-1)@v

@plain((im(),), [(im(3, 9),), (im(2, 7),), (im(1, 10),)])
class PaddedAsTensorflow(nn.Module):
    "'Same' padding depends on the size, ahead of the layer"
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2)
        self.bn = nn.BatchNorm2d(8)
    def forward(self, x):
        pads = [max((-(-n//2)-1)*2+3-n, 0) for n in x.shape[:1:-1]]
        x = F.pad(x, [p for n in pads for p in (n//2, n-n//2)])
        return torch.relu(self.bn(self.conv(x)))

@plain((im(),), [(im(3),), (im(2, 6),), (im(1, 11),)])
class ChannelShuffle(CB):
    "The groups are constant, the sizes aren't"
    def forward(self, x):
        y = self.conv(x)
        b,c,h,w = y.shape
        y = y.view(b, 2, c//2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.bn(y)

@plain((im(),), [(im(3),), (im(2, 6),), (im(1, 11),)])
class HalfOfChannels(CB4):
    def forward(self, x):
        y = self.conv(x)
        return torch.relu(self.bn(y[:, :y.shape[1]//2]))

@plain((im(),), [(im(3),), (im(2, 6),), (im(1, 11),)])
class ConstantFactor(CB):
    "A constant stands in the arithmetic, and a size in a view"
    def forward(self, x):
        B = x.shape[0]
        y = self.conv(x)*.5
        return self.bn(y).view(B, -1)

@plain((im(),), [(im(3),), (im(2, 6),), (im(1, 11),)])
class MeanOfLayers(nn.Module):
    "Divided by the number of layers"
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([conv(), conv(k=5)])
        self.bn = nn.BatchNorm2d(8)
    def forward(self, x): return self.bn(sum(c(x) for c in self.convs)/len(self.convs))

@plain((seq(),), [(seq(3, 7),), (seq(2, 1),), (seq(1, 5),)])
class ClassToken(nn.Module):
    "As many class tokens as items; norms of tokens over their channels"
    def __init__(self):
        super().__init__()
        self.cls = nn.Parameter(torch.zeros(1, 1, 6))
        self.l1,self.bn1,self.l2,self.bn2 = nn.Linear(6, 8),nn.BatchNorm1d(8),nn.Linear(8, 6),nn.BatchNorm1d(6)
    def forward(self, x):
        t = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        y = torch.relu(self.bn1(self.l1(t).transpose(1, 2)).transpose(1, 2))
        return self.bn2(self.l2(y).flatten(0, 1)).unflatten(0, t.shape[:2])[:, 0]

@plain((im(), False), [(im(), True), (im(3, 6), True), (im(1), False)])
class FlipsInput(nn.Module):
    "Test-time augmentation inside: whichever way the image lies, the block is called as a whole"
    def __init__(self):
        super().__init__()
        self.block = Block()
    def forward(self, x, tta):
        y = self.block(x)
        return (y+self.block(x.flip(-1)).flip(-1))/2 if tta else y

# what C reads of a number, what containers have, what an option does elsewhere

def scales_if(name, asks, *others):
    "A network that doubles between convolution and norm where `asks` says so"
    def forward(self, x):
        y = self.conv(x)
        return self.bn(2*y if asks(x) else y)
    net('asks', (im(),), [*others, (im(3),)])(type(name, (CB,), dict(forward=forward)))

scales_if('TableOfSizes', lambda x: ([False]*20 + [True]*50)[x.shape[-1]], (im(1, 32),))
scales_if('SizeAsText', lambda x: f'{x.shape[-1]}'=='32', (im(1, 32),))
scales_if('SizeInSet', lambda x: x.shape[-1] in {32, 64}, (im(1, 32),))
scales_if('SizesAsKey', lambda x: {(32,32): True}.get(tuple(x.shape[2:]), False), (im(1, 32),))
scales_if('RangeOfSizes', lambda x: len(range(x.shape[-1]))>20, (im(1, 32),))
scales_if('ArrayOfSizes', lambda x: (np.array(x.shape[2:])>20).all(), (im(1, 32),))
scales_if('NumberOfElements', lambda x: x.shape.numel()>5000, (im(2, 32),))
scales_if('NestedList', lambda x: len(x[0,0].tolist())>20, (im(1, 32),))
scales_if('LargeOnes', lambda x: len(x[x>100])>0, (im(at=200.),))
scales_if('TwoAnswers', lambda x: all([x.shape[-1]>20, x.shape[-2]>20]), (im(1, 32),))

@net('asks', (r(2, 3, 3, 8, 8),), [(r(2, 9, 3, 8, 8),)])
class LateFrames(CB):
    def forward(self, x):
        frames = [self.conv(x[:,t]) for t in range(x.shape[1])]
        return torch.stack([self.bn(y*.5 if t>=7 else y) for t,y in enumerate(frames)])

@net('asks', (dict(x=im()),), [(dict(x=im(), mask=vec(2, 1)),)])
class MaskInDict(CB):
    def forward(self, batch):
        y = self.conv(batch['x'])
        return self.bn(y*batch['mask'].view(-1, 1, 1, 1) if 'mask' in batch else y)

@net('asks', ([im(), im()],), [([im()]*3,), ([im()],)])
class ManyImages(CB):
    def forward(self, xs):
        y = self.conv(sum(xs))
        return self.bn(y/len(xs))

@net('asks', (im(),), [In((im(),), dict(layers=[0]))])
class EmptyDefault(CB):
    def forward(self, x, layers=()):
        y = self.conv(x)
        return self.bn(y.relu() if 0 in layers else y)

class HasFlag(CB):
    def forward(self, x, flag=False):
        y = self.conv(x)
        return self.bn(y.relu() if flag else y)

@net('asks', (im(),), [In((im(),), dict(flag=True))])
class HandsOptionsOn(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = HasFlag()
    def forward(self, *args, **kwargs): return self.part(*args, **kwargs)

@net('asks', (im(), False), [(im(), True)])
class FlagItself(CB):
    def forward(self, x, flag):
        y = self.conv(x)
        return self.bn(2*y if flag is True else y)

@net('asks', (im(),), [(im(),)]*6)
class EveryFifth(CB):
    "Counts from call to call"
    def __init__(self):
        super().__init__()
        self.calls = 0
    def forward(self, x):
        self.calls += 1
        y = self.conv(x)
        return self.bn(2*y if self.calls%5==0 else y)

@net('asks', (im(),), [(im(2, 16),), (im(1),)])
class LayersUsedElsewhere(nn.Module):
    "The forward mentions its layers once; what it calls mentions them, too"
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([conv(), nn.BatchNorm2d(8)])
        self.steps = [lambda layers,x: layers[1](layers[0](x)), self.adds_if_large]
    @staticmethod
    def adds_if_large(layers, y): return y + layers[0](y[:,:3]).mean() if y.shape[2] in {14} else y
    def forward(self, x):
        for step in self.steps: x = step(self.layers, x)
        return x

@net('asks', (im(at=1.),), [(im(at=1.), vec()), (im(at=-1.), vec()), (im(at=-1.),)])
class OptionBehindBranch(CB):
    "The option matters only where another answer leads"
    def forward(self, x, target=None):
        y = self.conv(x)
        if x.mean()>0: return y
        if target is not None: return y
        return self.bn(y)

@plain((im(),), [(im(3),), (im(2, 12),), (im(1, 11),)])
class AsksAfterwards(CB):
    "What is asked after the norm changes nothing before it"
    def forward(self, x):
        y = self.bn(self.conv(x))
        return F.interpolate(y, size=(int(x.shape[2]*.5), int(x.shape[3]*.5)))

@plain((im(),), [(im(3),), (im(1, 11),), (im(), torch.tensor([1, 0]))])
class LossIfTarget(CB):
    "Takes a target of class numbers"
    def forward(self, x, target=None):
        out = self.bn(self.conv(x)).mean((2,3))
        return out if target is None else F.cross_entropy(out, target)

# flags that a forward compares with `True` itself, so that nothing can stand for them

@plain((im(),), [In((im(3),), dict(emb=True)), In((im(2, 12),), dict(emb=False))])
class FlagReturnsMore(CB):
    def forward(self, x, emb=None):
        y = F.relu(self.bn(self.conv(x)))
        return (y, y.mean((2,3))) if isinstance(emb, bool) and emb is True else y

def flags(): return [In((im(3),), dict(zip('abc', f))) for f in product((True,False), repeat=3)]

@net('asks', (im(),), flags())
class TwoFlagsTogether(CB):
    def forward(self, x, a=True, b=False, c=False):
        y = self.conv(x)
        return self.bn(2*y + y.mean() if a is False and b is True else y)

@net('asks', (im(),), flags())
class ThreeFlagsTogether(CB):
    def forward(self, x, a=True, b=False, c=False):
        y = self.conv(x)
        return self.bn(2*y + y.mean() if a is False and b is True and c is False else y)

@net('asks', (im(4),), [In((im(n),), dict(flag=f)) for n in (2,9) for f in (True,False)])
class FlagAndItems(CB):
    def forward(self, x, flag=False):
        is_many = len(x)>7
        y = self.conv(x)
        return self.bn(2*y + y.mean() if is_many and flag is True else y)

@net('asks', (im(4),), [In((im(n),), dict(flag=f)) for n in (2,9) for f in (True,False)])
class FlagForPart(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = FlagAndItems()
    def forward(self, x, flag=False): return self.part(x, flag)

@net('asks', (im(),), [In((im(),), dict(flag=f, mask=m)) for m in (None,vec(2, 8)) for f in (True,False)])
class FlagAndMask(CB):
    def forward(self, x, flag=False, mask=None):
        y = self.conv(x)
        if mask is not None and flag is True: return y
        return self.bn(y)

@net('asks', (im(), torch.tensor(True)), [(im(), torch.tensor(False)), (im(3), torch.tensor(True))])
class FlagInTensor(CB):
    def forward(self, x, flag):
        y = self.conv(x)
        return self.bn(2*y + y.mean() if flag.item() is False else y)

# errors that a forward catches

@plain((im(),), [(im(3),), (im(2, 11),)])
class CatchesKinds(CB):
    "Tries a call with an option that the layer doesn't have"
    def forward(self, x, lens=None):
        for layer in (self.conv, self.bn):
            try: x = layer(x, lens=lens)
            except TypeError: x = layer(x)
        return x

@plain((im(),), [(im(3),), (im(2, 11),)])
class RaisesAgain(CB):
    def forward(self, x):
        try: y = self.conv(x)
        except RuntimeError as e:
            if x.ndim==2: raise ValueError("needs a batch of images")
            raise e
        return self.bn(y)

@net('asks', (im(),), [(im(), vec(2, 8)[:,:,None,None]), (im(3),)])
class CatchesNone(CB):
    "None can't be added, which is how it tells that there is no mask"
    def forward(self, x, mask=None):
        y = self.conv(x)
        try: y = y*mask + y.mean()
        except TypeError: y = y*1
        return self.bn(y)

@net('asks', (im(),), [(im(2, 16),), (im(1, 9),)])
class CatchesAndReturns(CB):
    "Raises again only sometimes"
    def forward(self, x):
        y = self.conv(x)
        try: return self.bn(y.view(len(y), 8, 8, 8)).flatten(1)
        except RuntimeError:
            if x.shape[2]>8: return y.mean((2,3))
            raise
