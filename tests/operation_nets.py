"""Small networks for test_operations, that fold by what they do, or must not. `NETS` lists them.

must(inputs, n, ...)   so many norm operations must be gone (kind 'bn': batch_norm calls at run time; kind 'affine':
                       broadcasting mul/add/sub/div operations at run time, together with batch_norm calls)
maybe(inputs, n, ...)  the same: exact and possible, but not done by all that can be thought of
trap(inputs)           only correctness matters; run without options and with layer_scale=True
"""
import copy, functools, math, types
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Callable
import torch, torchvision
import torch.nn.functional as F
from torch import nn, Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from input_nets import In

@dataclass
class Net:
    name:str
    make:Callable[[],nn.Module]
    example:Any              # tuple or In
    others:list              # tuples or Ins
    at_least:int|None=None   # norm operations that must be gone; None: only correctness matters
    opts:dict=field(default_factory=dict)
    kind:str='bn'            # what is counted: 'bn' or 'affine'
    sure:bool=True           # is it to be folded by now?
    at_most:int|None=None    # norm operations that may be gone at most (only=, skip=)
    raw:bool=False           # `make` returns a finished float64 model in evaluation with random numbers
    accept:str=''            # a FoldError with these words is fine, too
    tol:float=1e-9
    group:str=''

VAR = ('var','rstd','invstd','std')
def fill(model):
    "Random weights and statistics"
    with torch.no_grad():
        for m in model.modules():
            keep = getattr(m, '_keep', ())
            for n,p in m._parameters.items():
                if p is None or n in keep or not p.is_floating_point(): continue
                if p.dim()<2 or p[0].numel()==1: # a vector: never near 0, of both signs
                    p.copy_((torch.rand_like(p)*1.5+.4)*torch.randn_like(p).sign())
                    if p.numel()>2: p.view(-1)[0],p.view(-1)[-1] = -.8,1.3
                else: p.copy_(torch.randn_like(p)*(1.4*p[0].numel()**-.5))
            for n,b in m._buffers.items():
                if b is None or n in keep or not b.is_floating_point(): continue
                if any(n.endswith(v) for v in VAR): b.uniform_(.5,2)
                elif 'mask' in n: b.uniform_(.5,1.)
                elif n.endswith('mean'): b.uniform_(-2,2)
                else: b.copy_((torch.rand_like(b)*1.5+.4)*torch.randn_like(b).sign())
    return model

NETS:list[Net] = []
LS,MERGE,UNSHARE = dict(layer_scale=True),dict(merge=True),dict(unshare=True)
GROUP = ''

def group(s):
    global GROUP
    GROUP = s

def add(name, make, inputs, n, opts, **kw):
    tag = ''.join('+'+(k if v is True else f'{k}={v}') for k,v in opts.items())
    assert name+tag not in {o.name for o in NETS}, name
    NETS.append(Net(name+tag, make, inputs[0], inputs[1], n, opts, group=GROUP, **kw))

def must(inputs, n, *, also=(), name=None, **kw):
    "`kw` may hold options; `also`: [(n, opts, sure)] further runs of the same net"
    fields = {k:kw.pop(k) for k in list(kw) if k in ('kind','sure','at_most','raw','accept','tol')}
    def _must(make):
        nm = name or make.__name__
        add(nm, make, inputs, n, kw, **fields)
        if kw.get('layer_scale') and not fields.get('raw') and not fields.get('nowrap'):
            NETS[-1].sure = False # a part of a model can be replaced; the whole, too?
            def wrapped(): return nn.Sequential(make())
            wrapped.__name__ = nm+'AsPart'
            add(nm+'AsPart', wrapped, inputs, n, kw, **fields)
            if fields.get('kind','bn')=='bn': add(nm+'NeedsOption', make, inputs, 0, {}, **fields) # stays with a row
        for n2,o2,s2 in also: add(nm, make, inputs, n2, o2, **(fields | dict(sure=s2)))
        return make
    return _must

def maybe(inputs, n, **kw): return must(inputs, n, sure=False, **kw)

def trap(inputs, name=None, opts=({},LS), **kw):
    def _trap(make):
        for o in opts: add(name or make.__name__, make, inputs, None, o, **kw)
        return make
    return _trap

gen = torch.Generator().manual_seed(17)
def r(*shape, by=1., at=0.): return torch.randn(shape, generator=gen, dtype=torch.float64)*by + at
def ids(*shape, n=10): return torch.randint(0, n, shape, generator=gen)

def IM(c=3, s=8, fixed=False):
    if fixed: return (r(2,c,s,s),), [(r(2,c,s,s,by=9),), (r(2,c,s,s,at=-4),), (torch.zeros(2,c,s,s).double(),)]
    return (r(2,c,s,s),), [(r(1,c,s+1,s+3),), (r(3,c,s+5,s),), (r(2,c,s,s,by=9,at=3),), (r(1,c,s,s,at=-5),)]
def BIM(c=3, s=8): return (r(2,c,s,s),), [(r(1,c,s,s),), (r(5,c,s,s,by=9),), (r(3,c,s,s,at=-4),)] # batch varies only
def VEC(n=6): return (r(4,n),), [(r(1,n),), (r(7,n,by=9),), (r(2,n,at=-5),), (torch.zeros(3,n).double(),)]
def SEQ(n=6, l=5): return (r(2,l,n),), [(r(1,l+2,n),), (r(3,2,n,by=7),), (r(4,l,n,at=-3),)]
def BSEQ(n=6, l=5): return (r(2,l,n),), [(r(1,l,n),), (r(3,l,n,by=7),), (r(4,l,n,at=-3),)]
def SIG(c=3, l=12): return (r(2,c,l),), [(r(1,c,l+3),), (r(3,c,l-2,by=7),), (r(2,c,l,at=-3),)]
def IDS(*shape, n=10):
    b,*rest = shape
    return (ids(b,*rest,n=n),), [(ids(1,*rest,n=n),), (ids(b+2,*rest,n=n),), (torch.zeros(b,*rest).long(),)]

def par(*shape): return nn.Parameter(torch.zeros(shape))

class B(nn.Module):
    "A base with random-named parts: `parts` are set as attributes"
    def __init__(self, **parts):
        super().__init__()
        for k,v in parts.items():
            if isinstance(v, nn.Parameter) or isinstance(v, nn.Module): setattr(self, k, v)
            elif isinstance(v, Tensor): self.register_buffer(k, v)
            elif v is None: self.register_parameter(k, None)
            else: setattr(self, k, v)

def Conv(i=3, o=6, k=3, p=1, **kw): return nn.Conv2d(i, o, k, padding=p, **kw)
BN,BN1 = nn.BatchNorm2d,nn.BatchNorm1d

# ================================================================ 1. layers by operation
group('1')

class SamePadConv(nn.Conv2d):
    "timm's Conv2dSame"
    def forward(self, x):
        (kh,kw),(sh,sw),(dh,dw) = self.kernel_size,self.stride,self.dilation
        h,w = x.shape[-2:]
        ph = max((math.ceil(h/sh)-1)*sh + (kh-1)*dh + 1 - h, 0)
        pw = max((math.ceil(w/sw)-1)*sw + (kw-1)*dw + 1 - w, 0)
        if ph>0 or pw>0: x = F.pad(x, [pw//2, pw-pw//2, ph//2, ph-ph//2])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

@must(IM(), 2)
class SamePadBeforeNorms(B):
    def __init__(self):
        super().__init__(c1=SamePadConv(3,6,3,stride=2,bias=False), b1=BN(6), c2=SamePadConv(6,6,3,groups=6,bias=False),
            b2=BN(6))
    def forward(self, x): return self.b2(self.c2(F.silu(self.b1(self.c1(x)))))

class StaticPadConv(nn.Conv2d):
    "efficientnet_pytorch's, with the padding as a child"
    def __init__(self, i, o, k, size=8, **kw):
        super().__init__(i, o, k, **kw)
        s,d = self.stride[0],self.dilation[0]
        p = max((math.ceil(size/s)-1)*s + (k-1)*d + 1 - size, 0)
        self.static_padding = nn.ZeroPad2d((p//2,p-p//2,p//2,p-p//2)) if p>0 else nn.Identity()
    def forward(self, x):
        x = self.static_padding(x)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

@must(IM(), 3)
class StaticPadBeforeNorms(B):
    def __init__(self):
        super().__init__(c1=StaticPadConv(3,6,3,stride=2,bias=False), b1=BN(6), c2=StaticPadConv(6,6,3,size=4,groups=6,
            bias=False), b2=BN(6), c3=StaticPadConv(6,4,1,size=4,bias=False), b3=BN(4))
    def forward(self, x): return self.b3(self.c3(F.silu(self.b2(self.c2(F.silu(self.b1(self.c1(x))))))))

@trap(IM())
class NormBeforePadInside(B):
    def __init__(self): super().__init__(b=BN(3), c=SamePadConv(3,6,3))
    def forward(self, x): return self.c(self.b(x))

@trap(IM())
class NormBeforeStaticPad(B):
    def __init__(self): super().__init__(b=BN(3), c=StaticPadConv(3,6,3))
    def forward(self, x): return self.c(self.b(x))

@must(IM(), 1)
class NormBeforePadConvOfWidth1(B):
    "A 1x1 convolution that pads itself never does"
    def __init__(self): super().__init__(b=BN(3), c=StaticPadConv(3,6,1))
    def forward(self, x): return self.c(self.b(x))

@trap(((r(2,3,9,9),), [(r(2,3,10,9),), (r(1,3,11,10),), (r(1,3,12,12),)]))
class PadsOnlyOtherSizes(B):
    "Width 0 on the example, not on others"
    def __init__(self): super().__init__(b=BN(3), c=SamePadConv(3,6,3,stride=3))
    def forward(self, x): return self.c(self.b(x))

class ReflectInside(nn.Conv2d):
    def forward(self, x): return F.conv2d(F.pad(x, (1,1,1,1), mode='reflect'), self.weight, self.bias)

@must(IM(), 2)
class NormBeforeReflectInside(B):
    def __init__(self): super().__init__(b=BN(3), c=ReflectInside(3,6,3), b2=BN(6))
    def forward(self, x): return F.relu(self.b2(self.c(self.b(x))))

class IgnoresBias(nn.Conv2d):
    def forward(self, x): return F.conv2d(x, self.weight, None, self.stride, self.padding)

@trap(IM())
class NormAfterIgnoredBias(B):
    def __init__(self): super().__init__(c=IgnoresBias(3,6,3,padding=1,bias=False), b=BN(6))
    def forward(self, x): return F.relu(self.b(self.c(x)))

@trap(IM())
class NormAfterIgnoredPresentBias(B):
    def __init__(self): super().__init__(c=IgnoresBias(3,6,3,padding=1), b=BN(6))
    def forward(self, x): return F.relu(self.b(self.c(x)))

class NoSlot(nn.Module):
    def __init__(self, i=6, o=8):
        super().__init__()
        self.weight = par(o,i)
    def forward(self, x): return F.linear(x, self.weight)

@trap(VEC())
class NormAfterNoSlot(B):
    def __init__(self): super().__init__(l=NoSlot(), b=BN1(8))
    def forward(self, x): return F.relu(self.b(self.l(x)))

@trap(VEC())
class NormBeforeNoSlot(B):
    def __init__(self): super().__init__(b=BN1(6), l=NoSlot())
    def forward(self, x): return F.relu(self.l(self.b(x)))

class Gamma(nn.Module):
    def __init__(self, n, *dims):
        super().__init__()
        self.gamma = par(n,*dims)
    def forward(self, x): return x*self.gamma

@must(VEC(), 1, kind='affine', layer_scale=True)
class ScaleAfterNoSlot(B):
    "What needs no bias goes where none can be registered"
    def __init__(self): super().__init__(l=NoSlot(), g=Gamma(8))
    def forward(self, x): return F.relu(self.g(self.l(x)))

@must(VEC(), 1, kind='affine', layer_scale=True)
class ScaleBeforeNoSlot(B):
    def __init__(self): super().__init__(l=NoSlot(), g=Gamma(6))
    def forward(self, x): return F.relu(self.l(self.g(x)))

class PygLinear(nn.Module):
    def __init__(self, i, o, bias=True):
        super().__init__()
        self.weight = par(o,i)
        if bias: self.bias = par(o)
        else: self.register_parameter('bias', None)
    def forward(self, x): return F.linear(x, self.weight, self.bias)

@must(VEC(), 2)
class PygMLP(B):
    def __init__(self): super().__init__(lins=nn.ModuleList([PygLinear(6,8),PygLinear(8,8,False),PygLinear(8,3)]),
        norms=nn.ModuleList([BN1(8),BN1(8)]))
    def forward(self, x):
        for l,n in zip(self.lins, self.norms): x = F.dropout(n(l(x)).relu(), .5, self.training)
        return self.lins[-1](x)

@must(((r(5,6),ids(2,9,n=5)), [(r(3,6),ids(2,4,n=3)), (r(8,6,by=5),ids(2,20,n=8)), (r(4,6),torch.zeros(2,
    0).long())]), 2)
class GIN(B):
    "Sums over neighbours before the layer"
    def __init__(self): super().__init__(eps=0.3, l1=PygLinear(6,8), b1=BN1(8), l2=PygLinear(8,8), b2=BN1(8))
    def forward(self, x, e):
        out = torch.zeros_like(x).index_add_(0, e[1], x[e[0]])
        x = self.l1(out + (1+self.eps)*x)
        return self.b2(self.l2(self.b1(x).relu())).relu()

@trap(((r(5,6),ids(2,9,n=5)), [(r(3,6),ids(2,4,n=3)), (r(8,6,by=5),ids(2,20,n=8)), (r(4,6),torch.zeros(2,0).long())]))
class ScatterBetween(B):
    "The number of neighbours varies between the layer and the norm"
    def __init__(self): super().__init__(l1=PygLinear(6,8), b1=BN1(8))
    def forward(self, x, e):
        y = self.l1(x)
        return self.b1(torch.zeros_like(y).index_add_(0, e[1], y[e[0]])).relu()

@must(VEC(), 1)
class MatmulPlusBias(B):
    "x@W + b in the forward of the whole"
    def __init__(self): super().__init__(W=par(6,8), b=par(8), n=BN1(8))
    def forward(self, x): return self.n(x@self.W + self.b).relu()

class HFConv1D(nn.Module):
    "transformers' Conv1D of GPT-2"
    def __init__(self, i, o):
        super().__init__()
        self.weight,self.bias = par(i,o),par(o)
    def forward(self, x):
        size = x.size()[:-1] + (self.bias.numel(),)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)

@must(SEQ(), 1)
class AddmmModule(B):
    def __init__(self): super().__init__(l=HFConv1D(6,8), b=BN1(8))
    def forward(self, x): return self.b(self.l(x).transpose(1,2)).relu()

@must(VEC(), 1)
class NormBeforeMatmul(B):
    def __init__(self): super().__init__(W=par(6,8), b=par(8), n=BN1(6))
    def forward(self, x): return (torch.mm(self.n(x), self.W) + self.b).relu()

@must(SIG(6), 1)
class WTimesX(B):
    "The weight on the left"
    def __init__(self): super().__init__(W=par(8,6), b=par(8,1), n=BN1(8))
    def forward(self, x): return (self.n(self.W@x + self.b)).relu()

@maybe(VEC(), 1)
class WeightStoredTransposed(B):
    def __init__(self): super().__init__(W=par(8,6), b=par(8), n=BN1(8))
    def forward(self, x): return self.n(x@self.W.t() + self.b).relu()

@maybe(VEC(), 1)
class LinearOfTransposed(B):
    def __init__(self): super().__init__(W=par(6,8), b=par(8), n=BN1(8))
    def forward(self, x): return self.n(F.linear(x, self.W.T, self.b)).relu()

@maybe(IM(), 1)
class PointwiseFromLinearWeight(B):
    def __init__(self): super().__init__(l=nn.Linear(3,6), n=BN(6))
    def forward(self, x): return self.n(F.conv2d(x, self.l.weight[:,:,None,None], self.l.bias)).relu()

@maybe(SIG(), 1)
class PointwiseUnsqueezed(B):
    def __init__(self): super().__init__(w=par(6,3), b=par(6), n=BN1(6))
    def forward(self, x): return self.n(F.conv1d(x, self.w.unsqueeze(-1), self.b)).relu()

@must(IDS(4,5), 1)
class FEmbedding(B):
    def __init__(self): super().__init__(table=par(10,6), n=BN1(6))
    def forward(self, i): return self.n(F.embedding(i, self.table).transpose(1,2)).relu()

@must(IDS(4,5), 1)
class FEmbeddingPaddingIdx(B):
    def __init__(self): super().__init__(table=par(10,6), n=BN1(6))
    def forward(self, i): return self.n(F.embedding(i, self.table, padding_idx=0).transpose(1,2)).relu()

@trap(IDS(4,5))
class FEmbeddingMaxNorm(B):
    def __init__(self): super().__init__(table=par(10,6), n=BN1(6))
    def forward(self, i): return self.n(F.embedding(i, self.table, max_norm=1.).transpose(1,2)).relu()

@trap(IDS(4,5))
class TiedEmbedding(B):
    def __init__(self): super().__init__(table=par(10,6), n=BN1(6))
    def forward(self, i): return self.n(F.embedding(i, self.table).transpose(1,2)).relu().transpose(1,
        2) @ self.table.t()

@trap(((ids(7),torch.tensor([0,3])),
    [(ids(4),torch.tensor([0,0,2])), (ids(9),torch.tensor([0])), (ids(3),torch.tensor([0,3]))]))
class EmbeddingBagEmpty(B):
    "The mean of no rows is 0"
    def __init__(self): super().__init__(table=par(10,6), n=BN1(6))
    def forward(self, i, off): return self.n(F.embedding_bag(i, self.table, off, mode='mean')).relu()

@trap(IDS(4,5), name='EmbeddingByIndexing')
class EmbeddingByIndexing(B):
    def __init__(self): super().__init__(table=par(10,6), n=BN1(6))
    def forward(self, i): return self.n(self.table[i].transpose(1,2)).relu()

DEF = lambda c=3: ((r(2,c,8,8),r(2,18,8,8)),
[(r(1,c,9,7),r(1,18,9,7)), (r(3,c,8,8,at=4),r(3,18,8,8,by=3)), (r(2,c,8,8),torch.zeros(2,18,8,8).double())])

@must(DEF(), 1)
class DeformFunction(B):
    def __init__(self): super().__init__(weight=par(6,3,3,3), bias=par(6), n=BN(6))
    def forward(self, x,
        off): return self.n(torchvision.ops.deform_conv2d(x, off, self.weight, self.bias, padding=1)).relu()

@must(IM(), 1)
class DeformModule(B):
    def __init__(self): super().__init__(off=Conv(3,18), c=torchvision.ops.DeformConv2d(3,6,3,padding=1,bias=False),
        n=BN(6))
    def forward(self, x): return self.n(self.c(x, self.off(x))).relu()

@trap(DEF())
class NormBeforeDeform(B):
    "It samples zeros beyond the border"
    def __init__(self): super().__init__(n=BN(3), c=torchvision.ops.DeformConv2d(3,6,3,padding=1))
    def forward(self, x, off): return self.c(self.n(x), off)

@must(IM(), 1)
class FTransposed(B):
    def __init__(self): super().__init__(weight=par(4,3,3,3), bias=par(6), c=Conv(3,4), n=BN(6))
    def forward(self,
        x): return self.n(F.conv_transpose2d(self.c(x).relu(), self.weight, self.bias, stride=2, output_padding=1,
        groups=2)).relu()

@must(SIG(4), 1)
class FConv1dGroups(B):
    def __init__(self): super().__init__(weight=par(6,2,3), bias=par(6), n=BN1(6))
    def forward(self, x): return self.n(F.conv1d(x, self.weight, self.bias, padding='same', groups=2)).relu()

@must(((r(2,2,5,5,5),), [(r(1,2,4,6,5),), (r(3,2,5,5,5,by=5),), (r(2,2,3,3,3,at=-2),)]), 1)
class FConv3d(B):
    def __init__(self): super().__init__(weight=par(4,2,2,3,3), bias=par(4), n=nn.BatchNorm3d(4))
    def forward(self, x): return self.n(F.conv3d(x, self.weight, self.bias, padding=1)).relu()

@maybe(IM(), 1)
class TorchConvolution(B):
    def __init__(self): super().__init__(weight=par(6,3,3,3), bias=par(6), n=BN(6))
    def forward(self,
        x): return self.n(torch.convolution(x, self.weight, self.bias, (1,1), (1,1), (1,1), False, (0,0), 1)).relu()

@maybe(IM(), 1)
class AtenConv(B):
    def __init__(self): super().__init__(weight=par(6,3,3,3), bias=par(6), n=BN(6))
    def forward(self, x): return self.n(torch.ops.aten.conv2d.default(x, self.weight, self.bias, [1,1], [1,1])).relu()

@maybe(((r(4,5),r(4,6)), [(r(1,5),r(1,6)), (r(7,5,by=5),r(7,6)), (r(3,5),r(3,6,at=3))]), 1)
class BilinearLayer(B):
    def __init__(self): super().__init__(l=nn.Bilinear(5,6,8), n=BN1(8))
    def forward(self, x, y): return self.n(self.l(x, y)).relu()

@maybe(VEC(), 1)
class EinsumLayer(B):
    def __init__(self): super().__init__(W=par(8,6), b=par(8), n=BN1(8))
    def forward(self, x): return self.n(torch.einsum('bi,oi->bo', x, self.W) + self.b).relu()

@must(VEC(), 2)
class ParameterLists(B):
    def __init__(self): super().__init__(ws=nn.ParameterList([par(8,6),par(8,8)]),
        bs=nn.ParameterDict(dict(a=par(8),b=par(8))),
        n1=BN1(8), n2=BN1(8))
    def forward(self, x):
        x = self.n1(F.linear(x, self.ws[0], self.bs['a'])).relu()
        return self.n2(F.linear(x, self.ws[1], self.bs['b'])).relu()

@must(IM(), 1)
class WeightOfAnotherModule(B):
    def __init__(self): super().__init__(a=Conv(), n=BN(6))
    def forward(self, x): return self.n(F.conv2d(F.pad(x,(2,2,2,2)), self.a.weight, self.a.bias, dilation=2)).relu()

@trap(IM())
class FunctionAndModuleShare(B):
    def __init__(self): super().__init__(a=Conv(), n=BN(6))
    def forward(self,
        x): return self.n(F.conv2d(x, self.a.weight, self.a.bias)).relu().mean((2,3)) + self.a(x).mean((2,3))

@trap(IM())
class OneWeightTwoNorms(B):
    def __init__(self): super().__init__(w=par(6,3,3,3), b=par(6), n1=BN(6), n2=BN(6))
    def forward(self,
        x): return self.n1(F.conv2d(x, self.w, self.b)).relu() + self.n2(F.conv2d(x.flip(-1), self.w, self.b)).relu()

@maybe(IM(), 2)
class OneWeightOneNorm(B):
    def __init__(self): super().__init__(w=par(6,3,3,3), b=par(6), n=BN(6))
    def forward(self,
        x): return self.n(F.conv2d(x, self.w, self.b)).relu() + self.n(F.conv2d(x.flip(-1), self.w, self.b)).relu()

@trap(IM())
class WeightReadElsewhere(B):
    def __init__(self): super().__init__(w=par(6,3,3,3), b=par(6), n=BN(6))
    def forward(self, x): return self.n(F.conv2d(x, self.w, self.b)).relu(), self.w.norm()

@trap(IM())
class BiasReadElsewhere(B):
    def __init__(self): super().__init__(w=par(6,3,3,3), b=par(6), n=BN(6))
    def forward(self, x): return self.n(F.conv2d(x, self.w, self.b)).relu()*self.b.sigmoid().view(-1,1,1)

@trap(IM())
class TwoShareABias(B):
    def __init__(self): super().__init__(w=par(6,3,3,3), v=par(6,3,3,3), b=par(6), n=BN(6))
    def forward(self, x): return self.n(F.conv2d(x, self.w, self.b)).relu() - F.conv2d(x, self.v, self.b).relu()

class Masked(nn.Conv2d):
    def __init__(self, *args, **kw):
        super().__init__(*args, **kw)
        self.register_buffer('mask', torch.ones(1,1,3,3))
    def forward(self, x): return F.conv2d(x, self.weight*self.mask, self.bias, padding=1)

@trap(IM())
class MaskedWeight(B):
    def __init__(self): super().__init__(c=Masked(3,6,3), n=BN(6))
    def forward(self, x): return self.n(self.c(x)).relu()

class PixelCNN(nn.Conv2d):
    def __init__(self, *args, **kw):
        super().__init__(*args, **kw)
        self.register_buffer('mask', torch.ones(1,1,3,3))
    def forward(self, x):
        self.weight.data *= self.mask
        return super().forward(x)

@trap(IM())
class MaskedInPlace(B):
    "The mask isn't 0 and 1 here: each call changes the weight"
    def __init__(self): super().__init__(c=PixelCNN(3,6,3,padding=1), n=BN(6))
    def forward(self, x): return self.n(self.c(x)).relu()

class WSConv(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1,2,3),keepdim=True))/(w.std((1,2,3),keepdim=True)+1e-5)
        return F.conv2d(x, w, self.bias, padding=self.padding)

@trap(IM())
class Standardized(B):
    def __init__(self): super().__init__(c=WSConv(3,6,3,padding=1), n=BN(6))
    def forward(self, x): return self.n(self.c(x)).relu()

class EqualLR(nn.Conv2d):
    def forward(self, x): return F.conv2d(x, self.weight*.37, self.bias, padding=self.padding)

@trap(IM())
class EqualizedLR(B):
    def __init__(self): super().__init__(c=EqualLR(3,6,3,padding=1), n=BN(6))
    def forward(self, x): return self.n(self.c(x)).relu()

class Rounded(nn.Conv2d):
    def forward(self, x): return F.conv2d(x, (self.weight*16).round()/16, self.bias, padding=self.padding)

@trap(IM())
class RoundedWeight(B):
    def __init__(self): super().__init__(c=Rounded(3,6,3,padding=1), n=BN(6))
    def forward(self, x): return self.n(self.c(x)).relu()

class CastWeight(nn.Conv2d):
    def forward(self, x): return F.conv2d(x, self.weight.to(x.dtype),
        None if self.bias is None else self.bias.to(x.dtype), padding=self.padding)

@trap(IM())
class CastWeights(B):
    def __init__(self): super().__init__(c=CastWeight(3,6,3,padding=1), n=BN(6))
    def forward(self, x): return self.n(self.c(x)).relu()

@trap(((r(2,3,8,8),r(2,3)), [(r(1,3,7,9),r(1,3)), (r(2,3,8,8,by=4),r(2,3,at=2)), (r(4,3,8,8),r(4,3))]))
class Modulated(B):
    "StyleGAN2's"
    def __init__(self): super().__init__(w=par(6,3,3,3), n=BN(6))
    def forward(self, x, s):
        b,c,h,w = x.shape
        k = self.w[None]*s[:,None,:,None,None]
        k = k*torch.rsqrt((k**2).sum((2,3,4), keepdim=True)+1e-8)
        y = F.conv2d(x.reshape(1,b*c,h,w), k.reshape(b*6,c,3,3), padding=1, groups=b).view(b,6,h,w)
        return self.n(y).relu()

@trap(IM())
class CondConv(B):
    "A mixture of weights that depends on the input"
    def __init__(self): super().__init__(w=par(4,6*3*9), b=par(4,6), g=nn.Linear(3,4), n=BN(6))
    def forward(self, x):
        a = self.g(x.mean((2,3))).softmax(1).mean(0)
        return self.n(F.conv2d(x, (a@self.w).view(6,3,3,3), a@self.b, padding=1)).relu()

@trap(IM())
class BiasIsOneNumber(B):
    def __init__(self): super().__init__(w=par(6,3,3,3), b=par(1), n=BN(6))
    def forward(self, x): return self.n(F.conv2d(x, self.w, self.b.expand(6))).relu()

@trap(IM())
class BiasIsDoubled(B):
    def __init__(self): super().__init__(c=Conv(), n=BN(6))
    def forward(self, x): return self.n(F.conv2d(x, self.c.weight, self.c.bias*2)).relu()

class ScaledForward(nn.Conv2d):
    def __init__(self, *args, **kw):
        super().__init__(*args, **kw)
        self.scale = par(1)
    def forward(self, x): return super().forward(x)*self.scale

@must(IM(), 1)
class ConvThatScalesItself(B):
    "A number that is a parameter, on the way"
    def __init__(self): super().__init__(c=ScaledForward(3,6,3), n=BN(6))
    def forward(self, x): return self.n(self.c(x)).relu()

class SuperForward(nn.Conv2d):
    def forward(self, x): return super().forward(F.pad(x, (1,1,1,1)))

@must(IM(), 1)
class PadsThenSuper(B):
    def __init__(self): super().__init__(c=SuperForward(3,6,3,bias=False), n=BN(6))
    def forward(self, x): return self.n(self.c(x)).relu()

class ActInside(nn.Conv2d):
    def forward(self, x): return F.relu(super().forward(x))

@trap(IM())
class ActivationInside(B):
    def __init__(self): super().__init__(c=ActInside(3,6,3), n=BN(6))
    def forward(self, x): return self.n(self.c(x))

@must(IM(), 1)
class ActivationInsideThenPlain(B):
    "The norm before a subclass that only adds an activation at its end"
    def __init__(self): super().__init__(n=BN(3), c=ActInside(3,6,3))
    def forward(self, x): return self.c(self.n(x))

@trap(((r(2,3,8,8),), [(r(1,3,8,8),), (r(2,3,20,20),), (r(2,3,8,30),)]))
class OtherWayForLarge(B):
    "Another weight for large inputs"
    def __init__(self): super().__init__(a=par(6,3,3,3), b=par(6,3,3,3), c=par(6), n=BN(6))
    def forward(self, x): return self.n(F.conv2d(x, self.a if x.shape[-1]<16 else self.b, self.c)).relu()

@trap(((r(2,3,8,8),), [(r(1,3,8,8,at=-3),), (r(2,3,9,8,at=3),), (r(3,3,8,8,by=4),)]))
class FunctionOfValues(B):
    def __init__(self): super().__init__(a=par(6,3,3,3), c=par(6), n=BN(6))
    def forward(self, x):
        y = F.conv2d(x, self.a, self.c)
        return self.n(y).relu() if x.mean()>0 else y.relu()

# ================================================================ 2. norms by operation
group('2')

def fbn(x, n, training=False, momentum=.1):
    return F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, training, momentum, n.eps)

@must(IM(), 1, layer_scale=True)
class FBatchNormOfChild(B):
    def __init__(self): super().__init__(c=Conv(bias=False), n=BN(6))
    def forward(self, x): return fbn(self.c(x), self.n, self.training).relu()

@must(IM(), 1, layer_scale=True)
class FBatchNormBare(B):
    def __init__(self): super().__init__(c=Conv(bias=False), w=par(6), b=par(6), rmean=torch.zeros(6),
        rvar=torch.ones(6))
    def forward(self, x): return F.batch_norm(self.c(x), self.rmean, self.rvar, self.w, self.b, eps=1e-3).relu()

@must(IM(), 2, layer_scale=True)
class FBatchNormBothWays(B):
    "All by function: layers and norms"
    def __init__(self): super().__init__(k=par(6,3,3,3), kb=par(6), k2=par(4,6,1,1), k2b=par(4), n=BN(6), m=BN(4))
    def forward(self, x):
        x = F.relu(fbn(F.conv2d(x, self.k, self.kb, padding=1), self.n))
        return F.relu(fbn(F.conv2d(x, self.k2, self.k2b), self.m))

@must(IM(), 1, layer_scale=True)
class TorchBatchNorm(B):
    def __init__(self): super().__init__(c=Conv(), n=BN(6))
    def forward(self, x):
        n = self.n
        return torch.batch_norm(self.c(x), n.weight, n.bias, n.running_mean, n.running_var, False, 0., 1e-5,
            False).relu()

@must(IM(), 1, layer_scale=True)
class FBatchNormNoAffine(B):
    def __init__(self): super().__init__(c=Conv(), rmean=torch.zeros(6), rvar=torch.ones(6))
    def forward(self, x): return F.batch_norm(self.c(x), self.rmean, self.rvar).relu()

@must(IM(), 1, layer_scale=True)
class FBatchNormOfComputed(B):
    "Weights computed from parameters alone are constants"
    def __init__(self): super().__init__(c=Conv(), w=par(6), b=par(6), rmean=torch.zeros(6), rvar=torch.ones(6))
    def forward(self, x): return F.batch_norm(self.c(x), self.rmean*2, self.rvar.clamp(min=.6), self.w.exp(),
        self.b[torch.arange(5,-1,-1)]).relu()

@trap(IM())
class FBatchNormTraining(B):
    def __init__(self): super().__init__(c=Conv(), n=BN(6))
    def forward(self, x): return fbn(self.c(x), self.n, True, 0.).relu()

@trap(IM())
class FBatchNormTrainingUpdates(B):
    "Statistics change from call to call"
    def __init__(self): super().__init__(c=Conv(), n=BN(6))
    def forward(self, x):
        y = fbn(self.c(x), self.n, True, .5).relu()
        return y, self.n.running_mean.clone()

@trap(IM())
class UpdatedThenUsed(B):
    "One call in training mode, one with the updated statistics"
    def __init__(self): super().__init__(c=Conv(), n=BN(6))
    def forward(self, x):
        y = self.c(x)
        a = fbn(y, self.n, True, .5)
        return fbn(y, self.n, False) + a.relu()

@trap(IM())
class FBatchNormNoStats(B):
    def __init__(self): super().__init__(c=Conv(), n=BN(6))
    def forward(self, x): return F.batch_norm(self.c(x), None, None, self.n.weight, self.n.bias, True).relu()

@trap(IM())
class FBatchNormScaleOfInput(B):
    "Conditional batch_norm: its weight depends on the input"
    def __init__(self): super().__init__(c=Conv(), n=BN(6), l=nn.Linear(3,6))
    def forward(self, x): return F.batch_norm(self.c(x), self.n.running_mean, self.n.running_var,
        self.l(x.mean((0,2,3))), self.n.bias).relu()

@trap(IM())
class FBatchNormTrainingBySize(B):
    def __init__(self): super().__init__(c=Conv(), n=BN(6))
    def forward(self, x): return fbn(self.c(x), self.n, x.shape[0]>2, 0.).relu()

@trap(IM())
class FBatchNormEpsOfInput(B):
    def __init__(self): super().__init__(c=Conv(), n=BN(6))
    def forward(self, x): return F.batch_norm(self.c(x), self.n.running_mean, self.n.running_var,
        eps=.1*x.shape[-1]).relu()

class MMSyncBN(nn.SyncBatchNorm):
    def _check_input_dim(self, x):
        if x.dim()<2: raise ValueError('at least 2D')

@must(IM(), 1)
class OnlyCheckOverridden(B):
    def __init__(self): super().__init__(c=Conv(bias=False), n=MMSyncBN(6))
    def forward(self, x): return self.n(self.c(x)).relu()

class BN2dAny(nn.BatchNorm1d):
    def _check_input_dim(self, x): pass

@must(IM(), 1)
class OnlyCheckOverridden2(B):
    def __init__(self): super().__init__(c=Conv(bias=False), n=BN2dAny(6))
    def forward(self, x): return self.n(self.c(x)).relu()

class OwnBN(nn.BatchNorm2d):
    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias,
            self.training or not self.track_running_stats, 0., self.eps)

@must(IM(), 1)
class OwnForwardNorm(B):
    def __init__(self): super().__init__(c=Conv(bias=False), n=OwnBN(6))
    def forward(self, x): return self.n(self.c(x)).relu()

@trap(IM())
class OwnForwardNormNoStats(B):
    def __init__(self): super().__init__(c=Conv(bias=False), n=OwnBN(6, track_running_stats=False))
    def forward(self, x): return self.n(self.c(x)).relu()

class CastBN(nn.BatchNorm2d):
    def forward(self, x):
        with torch.autocast('cpu', enabled=False): return super().forward(x.to(self.weight.dtype)).to(x.dtype)

@must(IM(), 1)
class NormWithAutocastOff(B):
    def __init__(self): super().__init__(c=Conv(bias=False), n=CastBN(6))
    def forward(self, x): return self.n(self.c(x)).relu()

class ABN(nn.BatchNorm2d):
    "Norm and activation in one forward"
    def forward(self, x): return F.leaky_relu(fbn(x, self), .01)

@must(IM(), 1, layer_scale=True)
class NormActInOne(B):
    def __init__(self): super().__init__(c=Conv(bias=False), n=ABN(6))
    def forward(self, x): return self.n(self.c(x))

class ABNSuper(nn.BatchNorm2d):
    def forward(self, x): return F.silu(super().forward(x))

@must(IM(), 1, layer_scale=True)
class NormActBySuper(B):
    def __init__(self): super().__init__(c=Conv(bias=False), n=ABNSuper(6))
    def forward(self, x): return self.n(self.c(x))

class NormHolder(nn.Module):
    "fastai-like wrapper with a norm as a child and a flag"
    def __init__(self, n):
        super().__init__()
        self.bn,self.on = nn.BatchNorm2d(n),True
    def forward(self, x): return self.bn(x) if self.on else x

@must(IM(), 1)
class NormInWrapper(B):
    def __init__(self): super().__init__(c=Conv(bias=False), n=NormHolder(6))
    def forward(self, x): return self.n(self.c(x)).relu()

class Frozen(nn.Module):
    "DETR's"
    def __init__(self, n, eps=1e-5):
        super().__init__()
        for k in ('weight','bias','running_mean','running_var'): self.register_buffer(k, torch.ones(n))
        self.eps = eps
    def forward(self, x):
        w,b = self.weight.reshape(1,-1,1,1),self.bias.reshape(1,-1,1,1)
        rv,rm = self.running_var.reshape(1,-1,1,1),self.running_mean.reshape(1,-1,1,1)
        scale = w*(rv+self.eps).rsqrt()
        return x*scale + (b - rm*scale)

@must(IM(), 4, kind='affine')
class DetrFrozen(B):
    def __init__(self): super().__init__(c=Conv(bias=False), n=Frozen(6), c2=Conv(6,4,bias=False), n2=Frozen(4))
    def forward(self, x): return self.n2(self.c2(self.n(self.c(x)).relu())).relu()

class MeanRstd(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.register_buffer('mean', torch.zeros(shape))
        self.register_buffer('rstd', torch.ones(shape))
    def forward(self, x): return (x-self.mean)*self.rstd

@must(IM(), 2, kind='affine')
class MeanTimesRstd(B):
    def __init__(self): super().__init__(c=Conv(bias=False), n=MeanRstd(6,1,1))
    def forward(self, x): return self.n(self.c(x)).relu()

@must(IM(), 2, kind='affine')
class InputNormalized(B):
    "Before a convolution without padding"
    def __init__(self): super().__init__(n=MeanRstd(1,3,1,1), c=Conv(p=0))
    def forward(self, x): return self.c(self.n(x)).relu()

@trap(IM(), kind='affine')
class InputNormalizedThenPadded(B):
    def __init__(self): super().__init__(n=MeanRstd(1,3,1,1), c=Conv(p=1))
    def forward(self, x): return self.c(self.n(x)).relu()

class ScaleBias(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.scale,self.bias = par(*shape),par(*shape)
    def forward(self, x): return x*self.scale + self.bias

for nm,shape in dict(Scalars=(1,), ZeroDim=(), C11=(6,1,1), OneC11=(1,6,1,1)).items():
    @must(IM(), 2, kind='affine', name='ScaleBias'+nm)
    class ScaleBiasNet(B):
        def __init__(self, shape=shape): super().__init__(c=Conv(), n=ScaleBias(*shape))
        def forward(self, x): return self.n(self.c(x)).relu()

@must(SEQ(), 2, kind='affine')
class ScaleBiasLast(B):
    "Affine of an MLP (ResMLP): addcmul"
    def __init__(self): super().__init__(l=nn.Linear(6,8), alpha=par(1,1,8), beta=par(1,1,8), a=nn.Identity(),
        n=ScaleBias(8))
    def forward(self, x): return self.n(self.l(x)).relu()

class Addcmul(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.alpha,self.beta = par(*shape),par(*shape)
    def forward(self, x): return torch.addcmul(self.beta, self.alpha, x)

@maybe(SEQ(), 1, kind='affine')
class ResMLPAffine(B):
    def __init__(self): super().__init__(l=nn.Linear(6,8), n=Addcmul(1,1,8))
    def forward(self, x): return self.n(self.l(x)).relu()

@must(IM(), 2, kind='affine', layer_scale=True)
class AffineInLargerForward(B):
    def __init__(self): super().__init__(c=Conv(), g=par(6), b=par(6))
    def forward(self, x): return (self.c(x)*self.g[:,None,None] + self.b.view(1,-1,1,1)).relu()

@must(IM(), 2, kind='affine', layer_scale=True)
class HandWrittenNorm(B):
    def __init__(self): super().__init__(c=Conv(), rmean=torch.zeros(6), rvar=torch.ones(6), w=par(6), b=par(6))
    def forward(self, x):
        s = self.w/torch.sqrt(self.rvar+1e-5)
        t = self.b - self.rmean*s
        return (self.c(x)*s.view(1,-1,1,1) + t.view(1,-1,1,1)).relu()

@must(IM(), 4, kind='affine', layer_scale=True)
class HandWrittenFour(B):
    "((x-mean)/sqrt(var+eps))*w + b, one operation each"
    def __init__(self): super().__init__(c=Conv(), rmean=torch.zeros(1,6,1,1), rvar=torch.ones(1,6,1,1),
        w=par(1,6,1,1), b=par(1,6,1,1))
    def forward(self, x):
        x = self.c(x) - self.rmean
        x = x/(self.rvar+1e-5).sqrt()
        return (x*self.w + self.b).relu()

@must(IM(), 2, kind='affine', layer_scale=True)
class InPlaceAffine(B):
    def __init__(self): super().__init__(c=Conv(), w=par(6,1,1), b=par(6,1,1))
    def forward(self, x): return self.c(x).mul_(self.w).add_(self.b).relu_()

class DependsOnInput(Frozen):
    def forward(self, x):
        s = self.weight*(self.running_var+self.eps).rsqrt()*(1 + (x.abs().mean()>1.5))
        return x*s[:,None,None] + self.bias[:,None,None]

@trap(IM(), kind='affine')
class FrozenThatDepends(B):
    def __init__(self): super().__init__(c=Conv(), n=DependsOnInput(6))
    def forward(self, x): return self.n(self.c(x)).relu()

class DividesBySize(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.scale = par(n)
    def forward(self, x): return x*(self.scale/x.shape[-1])[:,None,None]

@trap(IM(), kind='affine')
class ScaleOfSize(B):
    def __init__(self): super().__init__(c=Conv(), n=DividesBySize(6))
    def forward(self, x): return self.n(self.c(x)).relu()

class DividesByBatch(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.scale = par(n)
    def forward(self, x): return x*(self.scale*len(x))[:,None,None]

@trap(IM(), kind='affine')
class ScaleOfBatch(B):
    def __init__(self): super().__init__(c=Conv(), n=DividesByBatch(6))
    def forward(self, x): return self.n(self.c(x)).relu()

@trap(((r(2,3,6,6),), [(r(1,3,6,6),), (r(4,3,9,6),), (r(2,3,6,6,at=4),)]), kind='affine')
class WrongAxisFrozen(B):
    "6 channels, 6 columns: the parameters belong to the columns"
    def __init__(self): super().__init__(c=Conv(), n=ScaleBias(6))
    def forward(self, x): return self.n(self.c(x)).relu()

@trap(((r(6,6),), [(r(6,6),), (r(6,6,by=4),), (r(6,6,at=-3),)]), kind='affine')
class WrongAxisOfBatch(B):
    "Parameters per item"
    def __init__(self): super().__init__(l=nn.Linear(6,6), n=ScaleBias(6,1))
    def forward(self, x): return self.n(self.l(x)).relu()

@trap(((r(2,3,6,6),), [(r(1,3,6,6),), (r(4,3,6,6,by=5),), (r(2,3,6,6,at=4),)]), kind='affine')
class PerPosition(B):
    def __init__(self): super().__init__(c=Conv(), w=par(1,1,6,6), n=BN(6))
    def forward(self, x): return self.n(self.c(x)*self.w).relu()

class Ema(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.register_buffer('scale', torch.ones(n))
    def forward(self, x):
        y = x*self.scale[:,None,None]
        self.scale.mul_(.5)
        return y

@trap(IM(), kind='affine')
class ScaleChangesEachCall(B):
    def __init__(self): super().__init__(c=Conv(), e=Ema(6), n=BN(6))
    def forward(self, x): return self.n(self.e(self.c(x))).relu()

class Counts(nn.Module):
    _keep = ('steps',)
    def __init__(self, n):
        super().__init__()
        self.register_buffer('steps', torch.zeros((), dtype=torch.long))
        self.scale = par(n)
    def forward(self, x):
        self.steps += 1
        return x*(self.scale/self.steps)[:,None,None]

@trap(IM(), kind='affine')
class ScaleCountsCalls(B):
    def __init__(self): super().__init__(c=Conv(), e=Counts(6), n=BN(6))
    def forward(self, x): return self.n(self.e(self.c(x))).relu()

class Renorm(nn.Module):
    "Statistics of the input"
    def __init__(self, n):
        super().__init__()
        self.weight,self.bias = par(n),par(n)
    def forward(self, x):
        x = (x-x.mean((0,2,3),keepdim=True))/(x.std((0,2,3),keepdim=True)+1e-3)
        return x*self.weight[:,None,None] + self.bias[:,None,None]

@trap(IM(), kind='affine')
class StatisticsOfInput(B):
    def __init__(self): super().__init__(c=Conv(), n=Renorm(6))
    def forward(self, x): return self.n(self.c(x)).relu()

class Frn(nn.Module):
    "Filter response norm with a threshold"
    def __init__(self, n):
        super().__init__()
        self.tau,self.beta,self.gamma = par(1,n,1,1),par(1,n,1,1),par(1,n,1,1)
    def forward(self, x):
        x = x*torch.rsqrt(x.pow(2).mean((2,3),keepdim=True)+1e-6)
        return torch.max(self.gamma*x+self.beta, self.tau)

@trap(IM(), kind='affine')
class ResponseNorm(B):
    def __init__(self): super().__init__(c=Conv(), n=Frn(6))
    def forward(self, x): return self.n(self.c(x))

class ActNorm(nn.Module):
    "Sets itself from the first batch that it sees"
    def __init__(self, n):
        super().__init__()
        self.loc,self.scale = par(1,n,1,1),par(1,n,1,1)
        self.register_buffer('initialized', torch.tensor(0))
    def forward(self, x):
        if self.initialized.item()==0:
            with torch.no_grad():
                self.loc.copy_(-x.mean((0,2,3),keepdim=True))
                self.scale.copy_(1/(x.std((0,2,3),keepdim=True)+1e-6))
            self.initialized.fill_(1)
        return self.scale*(x+self.loc)

@trap(IM(), kind='affine')
class ActNormUnset(B):
    def __init__(self): super().__init__(c=Conv(), n=ActNorm(6))
    def forward(self, x): return self.n(self.c(x)).relu()

def set_actnorm():
    m = ActNormUnset()
    m.n.initialized.fill_(1)
    return m

maybe(IM(), 2, kind='affine', name='ActNormSet')(set_actnorm)

class TempAffine(nn.Module):
    "Flow-like: returns a tuple"
    def __init__(self, n):
        super().__init__()
        self.n = nn.BatchNorm2d(n)
    def forward(self, x): return self.n(x), self.n.weight.abs().log().sum()*x.shape[-1]

@trap(IM())
class NormParametersReadElsewhere(B):
    "A log-determinant reads the norm's weight"
    def __init__(self): super().__init__(c=Conv(), n=TempAffine(6))
    def forward(self, x):
        y,ld = self.n(self.c(x))
        return y.relu(), ld

@trap(IM())
class NormWeightAsPenalty(B):
    def __init__(self): super().__init__(c=Conv(), n=BN(6))
    def forward(self, x): return self.n(self.c(x)).relu(), self.n.weight.abs().sum()

@trap(IM())
class FunctionAndChildShareNorm(B):
    def __init__(self): super().__init__(c=Conv(), d=Conv(), n=BN(6))
    def forward(self, x): return self.n(self.c(x)).relu() + fbn(self.d(x), self.n).sigmoid()

@must(IM(), 1, layer_scale=True)
class NormByHelper(B):
    "A norm called by a function that's not a method"
    def __init__(self): super().__init__(c=Conv(), n=BN(6))
    def forward(self, x):
        def norm(t, m): return nn.functional.batch_norm(t, m.running_mean, m.running_var, m.weight, m.bias, eps=m.eps)
        return norm(self.c(x), self.n).relu()

@maybe(IM(), 1, layer_scale=True)
class ForwardBoundToAnother(B):
    "nn.BatchNorm2d.forward called as a function"
    def __init__(self): super().__init__(c=Conv(), n=BN(6))
    def forward(self, x): return nn.BatchNorm2d.forward(self.n, self.c(x)).relu()

@trap(((r(2,3,8,8),), [(r(1,3,8,8),), In((r(2,3,8,8),), dict(scale=3.)), In((r(2,3,9,8),), dict(scale=-1.))]),
    kind='affine')
class ScaleIsAnOption(B):
    def __init__(self): super().__init__(c=Conv(), w=par(6,1,1), n=BN(6))
    def forward(self, x, scale=2.): return self.n(self.c(x)*self.w*scale).relu()

# ================================================================ 3. constants on the way
group('3')

def between(name, f, *shape, dec=must, n=1, inputs=None, buf=False, keep=(), init=None, **kw):
    "convolution, f(y, constant), norm"
    class Between(B):
        _keep = keep
        def __init__(self):
            super().__init__(c=Conv(), k=torch.ones(shape) if buf else par(*shape), n=BN(6))
            if init: init(self)
        def forward(self, x): return self.n(f(self.c(x), self.k)).relu()
    Between.__name__ = name
    if dec is trap: return trap(inputs or IM(), name=name, **kw)(Between)
    return dec(inputs or IM(), n, name=name, **kw)(Between)

between('PlusParameter', lambda y,k: y+k, 6,1,1)
between('MinusParameter', lambda y,k: y-k, 1,6,1,1)
between('ParameterMinus', lambda y,k: k-y, 6,1,1)
between('PlusBuffer', lambda y,k: y+k[:,None,None], 6, buf=True)
between('TimesParameter', lambda y,k: y*k, 6,1,1)
between('TimesBuffer', lambda y,k: k.view(1,-1,1,1)*y, 6, buf=True)
between('DividedByParameter', lambda y,k: y/k, 6,1,1)
between('PlusInPlace', lambda y,k: y.add_(k), 6,1,1)
between('PlusAlpha', lambda y,k: torch.add(y, k, alpha=3), 6,1,1)
between('TimesOneNumber', lambda y,k: y*k, 1)
between('TimesZeroDim', lambda y,k: y*k, dec=maybe)
between('PlusOneNumber', lambda y,k: y+k, 1, dec=maybe)
between('PlusLiteral', lambda y,k: y*2+1, 1, dec=maybe)
between('TimesExp', lambda y,k: y*k.exp(), 6,1,1, dec=maybe)
between('PlusPositions', lambda y,k: y+k, 1,6,8,8, dec=maybe, inputs=BIM())
between('PlusLogits', lambda y,k: y+k.sigmoid(), 6,1,1, dec=maybe)

def zeroed(m):
    with torch.no_grad():
        m.k.copy_(torch.randn_like(m.k))
        m.k.view(-1)[::2] = 0
between('TimesZeros', lambda y,k: y*k, 6,1,1, dec=trap, keep=('k',), init=zeroed)
between('TimesZerosBuffer', lambda y,k: y*k, 6,1,1, dec=trap, keep=('k',), init=zeroed, buf=True)
between('PlusPerColumn', lambda y,k: y+k, 8, dec=trap, inputs=BIM())
between('TimesPerColumnLikeChannels', lambda y,k: y*k, 6, dec=trap, inputs=BIM(3,6))
between('PlusThenUsedAgain', lambda y,k: (y+k)*k.sigmoid(), 6,1,1, dec=trap)
between('ConstantToAPower', lambda y,k: y**(k.abs()*3).round(), 6,1,1, dec=trap)
between('Maximum', lambda y,k: torch.maximum(y,k), 6,1,1, dec=trap)
between('DividesConstant', lambda y,k: k/(y.abs()+1), 6,1,1, dec=trap)
between('Remainder', lambda y,k: y.remainder(k), 6,1,1, dec=trap)

@trap(IM())
class ConstantInTwoPlaces(B):
    def __init__(self): super().__init__(c=Conv(), d=Conv(), k=par(6,1,1), n=BN(6), m=BN(6))
    def forward(self, x): return self.n(self.c(x)+self.k).relu() + self.m(self.d(x)*self.k).relu()

@trap(IM())
class ConstantIsReturned(B):
    def __init__(self): super().__init__(c=Conv(), k=par(6,1,1), n=BN(6))
    def forward(self, x): return self.n(self.c(x)*self.k).relu(), self.k

class AddBias(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.b = par(n,1,1)
    def forward(self, x): return x+self.b

@must(IM(), 1)
class ConstantInChild(B):
    def __init__(self): super().__init__(c=Conv(), a=AddBias(6), n=BN(6))
    def forward(self, x): return self.n(self.a(self.c(x))).relu()

@trap(IM())
class ConstantInSharedChild(B):
    def __init__(self): super().__init__(c=Conv(), d=Conv(), a=AddBias(6), n=BN(6), m=BN(6))
    def forward(self, x): return self.n(self.a(self.c(x))).relu() + self.m(self.a(self.d(x))).relu()

@trap(IM())
class ConstantChanges(B):
    def __init__(self): super().__init__(c=Conv(), k=torch.ones(6,1,1), n=BN(6))
    def forward(self, x):
        y = self.n(self.c(x)+self.k).relu()
        self.k.add_(1)
        return y

@must(VEC(), 1)
class ConstantAfterNormAhead(B):
    "Norm, constant, layer"
    def __init__(self): super().__init__(n=BN1(6), k=par(6), l=nn.Linear(6,8))
    def forward(self, x): return self.l(self.n(x)*self.k).relu()

@must(VEC(), 1)
class ShiftAfterNormAhead(B):
    def __init__(self): super().__init__(n=BN1(6), k=par(6), l=nn.Linear(6,8))
    def forward(self, x): return self.l(self.n(x)-self.k).relu()

@trap(VEC())
class ConstantAheadOfNoBias(B):
    def __init__(self): super().__init__(n=BN1(6), k=par(6), l=NoSlot())
    def forward(self, x): return self.l(self.n(x)-self.k).relu()

@must(IM(), 2)
class TwoConstantsTwoNorms(B):
    def __init__(self): super().__init__(c=Conv(), k=par(6,1,1), s=par(6,1,1), n=BN(6), m=BN(6))
    def forward(self, x): return self.m(self.n(self.c(x)+self.k)*self.s).relu()

@must(IM(), 1)
class ConstantsOfBranches(B):
    "A sum of two layers with a constant on one branch"
    def __init__(self): super().__init__(c=Conv(), d=Conv(), k=par(6,1,1), n=BN(6))
    def forward(self, x): return self.n(self.c(x)*self.k + self.d(x)).relu()

@trap(IM())
class ReZeroFromInput(B):
    def __init__(self): super().__init__(c=Conv(), g=nn.Linear(3,6), n=BN(6))
    def forward(self, x): return self.n(self.c(x)*self.g(x.mean((2,3)))[:,:,None,None].sigmoid()).relu()

@trap(SIG(6), kind='affine')
class LearnedPerItem(B):
    "One number per item of the batch, repeated"
    def __init__(self): super().__init__(c=nn.Conv1d(6,6,1), k=par(6), n=BN1(6))
    def forward(self, x): return self.n(self.c(x)*self.k[torch.arange(len(x))%6][:,None,None]).relu()

# ================================================================ 4. more ways through
group('4')

PADS = dict(reflect=nn.ReflectionPad2d, replicate=nn.ReplicationPad2d, circular=nn.CircularPad2d)
for mode,Pad in PADS.items():
    @must(IM(), 2, name=f'NormFPad_{mode}')
    class NormFPad(B):
        "Norm, padding, convolution, norm: by function and as a module"
        def __init__(self, mode=mode): super().__init__(n=BN(3), c=Conv(p=0), m=BN(6), mode=mode)
        def forward(self, x): return self.m(self.c(F.pad(self.n(x), (1,2,2,1), mode=self.mode))).relu()
    @must(IM(), 1, name=f'NormPadModule_{mode}')
    class NormPadModule(B):
        def __init__(self, Pad=Pad): super().__init__(n=BN(3), pad=Pad((1,0,2,1)), c=Conv(p=0))
        def forward(self, x): return self.c(self.pad(self.n(x))).relu()
    @must(IM(), 1, name=f'LayerPadNorm_{mode}')
    class LayerPadNorm(B):
        "Between layer and norm"
        def __init__(self, mode=mode): super().__init__(n=BN(6), c=Conv(p=0), mode=mode)
        def forward(self, x): return self.n(F.pad(self.c(x), (1,1,1,1), mode=self.mode)).relu()

@must(SIG(), 2)
class SpeechbrainTDNN(B):
    "convolution, ReLU, norm, reflected padding, convolution"
    def __init__(self): super().__init__(c1=nn.Conv1d(3,6,3), n1=BN1(6), c2=nn.Conv1d(6,6,3,dilation=2), n2=BN1(6),
        c3=nn.Conv1d(6,4,1))
    def forward(self, x):
        x = self.n1(self.c1(F.pad(x,(1,1),mode='reflect')).relu())
        x = self.n2(self.c2(F.pad(x,(2,2),mode='reflect')).relu())
        return self.c3(x)

@must(IM(), 1)
class PadOfWidth0(B):
    def __init__(self): super().__init__(n=BN(3), pad=nn.ZeroPad2d(0), c=Conv(p=0))
    def forward(self, x): return self.c(F.pad(self.pad(self.n(x)), (0,0,0,0))).relu()

@maybe(IM(), 1)
class CropByPad(B):
    "Negative widths move only"
    def __init__(self): super().__init__(n=BN(3), c=Conv(p=0))
    def forward(self, x): return self.c(F.pad(self.n(x), (-1,-1,0,-2))).relu()

@maybe(IM(), 1)
class CropAfterLayer(B):
    def __init__(self): super().__init__(n=BN(6), c=Conv(p=0))
    def forward(self, x): return self.n(F.pad(self.c(x), (-1,-1,0,-2))).relu()

for nm,w,v in ('Zeros',(1,1,1,1),0.),('Value',(1,1,1,1),1.7),('Mixed',(-1,1,0,0),0.),('OneSide',(0,0,0,1),
0.),('Channels',(0,0,0,0,1,2),0.):
    @trap(IM(), name='NormPad'+nm)
    class NormPad(B):
        def __init__(self, w=w, v=v): super().__init__(n=BN(3), c=Conv(3 if len(w)<5 else 6,6,p=0), w=w, v=v)
        def forward(self, x): return self.c(F.pad(self.n(x), self.w, value=self.v)).relu()
    if len(w)>4: continue
    @trap(IM(), name='LayerPadNorm'+nm)
    class LayerPadNorm0(B):
        "A padded border isn't the layer's"
        def __init__(self, w=w, v=v): super().__init__(n=BN(6), c=Conv(p=0), w=w, v=v)
        def forward(self, x): return self.n(F.pad(self.c(x), self.w, value=self.v)).relu()

@trap(((r(2,3,8,8),), [(r(1,3,7,8),), (r(2,3,9,9),), (r(3,3,8,7),)]))
class PadToMultiple(B):
    "Swin: pads only sizes that aren't multiples of 4"
    def __init__(self): super().__init__(n=BN(3), c=nn.Conv2d(3,6,4,stride=4))
    def forward(self, x):
        h,w = x.shape[-2:]
        return self.c(F.pad(self.n(x), (0,-w%4,0,-h%4))).relu()

@trap(((r(2,3,8,8),), [(r(1,3,7,8),), (r(2,3,9,9),), (r(3,3,6,7),)]))
class PadOrCropTo8(B):
    def __init__(self): super().__init__(n=BN(3), c=nn.Conv2d(3,6,4,stride=4))
    def forward(self, x):
        h,w = x.shape[-2:]
        return self.c(F.pad(self.n(x), (0,8-w,0,8-h))).relu()

@must(((r(2,6),), [(r(1,6),), (r(5,6,by=4),), (r(3,6,at=3),)]), 1)
class Ravel(B):
    def __init__(self): super().__init__(l=nn.Linear(6,8), n=BN1(8))
    def forward(self, x): return self.n(self.l(x).ravel().view(-1,8)).relu()

@trap(((r(2,6),), [(r(4,6),), (r(6,6,by=4),), (r(2,6,at=3),)]))
class RavelToOthers(B):
    "Numbers come to other channels"
    def __init__(self): super().__init__(l=nn.Linear(6,8), n=BN1(16))
    def forward(self, x): return self.n(self.l(x).ravel().view(-1,16)).relu()

@must(IM(), 1)
class MemoryFormat(B):
    def __init__(self): super().__init__(c=Conv(), n=BN(6))
    def forward(self, x): return self.n(self.c(x).to(memory_format=torch.channels_last)).relu()

@maybe(IM(), 1)
class ToOwnDtype(B):
    def __init__(self): super().__init__(c=Conv(), n=BN(6))
    def forward(self, x): return self.n(self.c(x).to(x.dtype).type_as(x).to(x.device)).relu()

@trap(IM(), tol=1e-5)
class ToFloat32AndBack(B):
    def __init__(self): super().__init__(c=Conv(), n=BN(6))
    def forward(self, x): return self.n(self.c(x).float().to(x.dtype)).relu()

@trap(IM())
class ToIntegers(B):
    def __init__(self): super().__init__(c=Conv(), n=BN(6))
    def forward(self, x): return self.n((self.c(x)*4).to(torch.int32).to(x.dtype)).relu()

@trap(IM())
class ToBool(B):
    def __init__(self): super().__init__(n=BN(3), c=Conv(p=0))
    def forward(self, x): return self.c((self.n(x)>0).to(x.dtype))

@must(IM(), 1)
class StackSum(B):
    def __init__(self): super().__init__(c=Conv(), d=Conv(k=1,p=0), n=BN(6))
    def forward(self, x): return self.n(torch.stack([self.c(x), self.d(x)]).sum(0)).relu()

@must(IM(), 2)
class NormsStackSum(B):
    def __init__(self): super().__init__(c=Conv(), d=Conv(k=1,p=0), n=BN(6), m=BN(6))
    def forward(self, x): return torch.stack([self.n(self.c(x)), self.m(self.d(x))], 0).sum(dim=0).relu()

@maybe(IM(), 1)
class StackSumLast(B):
    def __init__(self): super().__init__(c=Conv(), d=Conv(k=1,p=0), n=BN(6))
    def forward(self, x): return self.n(torch.stack([self.c(x), self.d(x)], dim=-1).sum(-1)).relu()

@maybe(IM(), 1)
class StackMean(B):
    def __init__(self): super().__init__(c=Conv(), d=Conv(k=1,p=0), n=BN(6))
    def forward(self, x): return self.n(torch.stack([self.c(x), self.d(x)]).mean(0)).relu()

@trap(IM())
class StackSumOfBatch(B):
    def __init__(self): super().__init__(c=Conv(), d=Conv(k=1,p=0), n=BN(6))
    def forward(self, x): return self.n(torch.stack([self.c(x), self.d(x)]).sum(1)).relu()

@trap(IM())
class StackMax(B):
    def __init__(self): super().__init__(c=Conv(), d=Conv(k=1,p=0), n=BN(6))
    def forward(self, x): return self.n(torch.stack([self.c(x), self.d(x)]).amax(0)).relu()

@trap(IM())
class StackProd(B):
    def __init__(self): super().__init__(c=Conv(), d=Conv(k=1,p=0), n=BN(6))
    def forward(self, x): return self.n(torch.stack([self.c(x), self.d(x)]).prod(0)).relu()

@trap(IM())
class StackWeighted(B):
    def __init__(self): super().__init__(c=Conv(), d=Conv(k=1,p=0), g=nn.Linear(3,2), n=BN(6))
    def forward(self, x):
        w = self.g(x.mean((0,2,3))).view(2,1,1,1,1)
        return self.n((torch.stack([self.c(x), self.d(x)])*w).sum(0)).relu()

@trap(((r(3,3,8,8),2), [(r(1,3,8,8),1), (r(2,3,7,8),3), (r(3,3,8,8,by=4),4)]))
class StackOfMany(B):
    "How many are added depends on the input"
    def __init__(self): super().__init__(c=Conv(), n=BN(6))
    def forward(self, x, k): return self.n(torch.stack([self.c(x+i) for i in range(k)]).sum(0)).relu()

@trap(IM())
class SumOfPixels(B):
    def __init__(self): super().__init__(c=Conv(), n=BN1(6))
    def forward(self, x): return self.n(self.c(x).sum((2,3))).relu()

@trap(IM())
class SumOfPixelsAhead(B):
    def __init__(self): super().__init__(n=BN(3), l=nn.Linear(3,6))
    def forward(self, x): return self.l(self.n(x).sum((2,3))).relu()

@trap(IM())
class SumOfChannels(B):
    def __init__(self): super().__init__(c=Conv(), n=BN(1))
    def forward(self, x): return self.n(self.c(x).sum(1,keepdim=True)).relu()

@must(IM(), 1)
class EinsumPermutes(B):
    def __init__(self): super().__init__(n=BN(3), l=nn.Linear(3,6))
    def forward(self, x): return self.l(torch.einsum('bchw->bhwc', self.n(x))).relu()

@must(IM(), 1)
class EinsumPermutesBack(B):
    def __init__(self): super().__init__(l=nn.Linear(3,6), n=BN(6))
    def forward(self, x): return self.n(torch.einsum('b h w c -> b c h w', self.l(x.permute(0,2,3,1)))).relu()

@maybe(IM(), 1)
class EinsumEllipsis(B):
    def __init__(self): super().__init__(n=BN(3), l=nn.Linear(3,6))
    def forward(self, x): return self.l(torch.einsum('bc...->b...c', self.n(x))).relu()

@trap(IM())
class EinsumSums(B):
    def __init__(self): super().__init__(c=Conv(), n=BN1(6))
    def forward(self, x): return self.n(torch.einsum('bchw->bc', self.c(x))).relu()

@trap(((r(2,3,8,8),), [(r(1,3,7,7),), (r(2,3,9,9,by=4),), (r(3,3,8,8,at=3),)]))
class EinsumDiagonal(B):
    def __init__(self): super().__init__(c=Conv(), n=BN1(6))
    def forward(self, x): return self.n(torch.einsum('bchh->bch', self.c(x))).relu()

@trap(((r(2,6,6),), [(r(1,6,6),), (r(3,6,6,by=4),), (r(2,6,6,at=3),)]))
class EinsumChannelDiagonal(B):
    "A diagonal of channels and positions, and their sum"
    def __init__(self): super().__init__(c=nn.Conv1d(6,6,1), n=BN1(6), m=BN1(6))
    def forward(self, x):
        y = self.m(self.c(x))
        return self.n(torch.einsum('bcc->bc', y)).relu() + torch.einsum('bcc->b', y)[:,None]

@trap(((r(2,6,6),), [(r(1,6,6),), (r(3,6,6,by=4),), (r(2,6,6,at=3),)]))
class EinsumSwapsEqualSizes(B):
    "As many channels as positions: which is which?"
    def __init__(self): super().__init__(c=nn.Conv1d(6,6,1), n=BN1(6))
    def forward(self, x): return self.n(torch.einsum('bcl->blc', self.c(x))).relu()

@trap(((r(2,6,6),), [(r(1,6,6),), (r(3,6,6,by=4),), (r(2,6,6,at=3),)]))
class EinsumOuter(B):
    def __init__(self): super().__init__(c=nn.Conv1d(6,6,1), d=nn.Conv1d(6,6,1), n=BN1(6))
    def forward(self, x): return self.n(torch.einsum('bci,bcj->bc', self.c(x), self.d(x))).relu()

class GBN(nn.Module):
    "TabNet's ghost norm"
    def __init__(self, n, size=4):
        super().__init__()
        self.size,self.bn = size,nn.BatchNorm1d(n, momentum=.01)
    def forward(self, x):
        chunks = x.chunk(int(math.ceil(x.shape[0]/self.size)), 0)
        return torch.cat([self.bn(c) for c in chunks], dim=0)

GV = ((r(10,6),), [(r(4,6),), (r(1,6),), (r(23,6,by=5),), (r(9,6,at=-3),)])
@must(GV, 3)
class GhostNorm(B):
    def __init__(self): super().__init__(l=nn.Linear(6,8,bias=False), g=GBN(8))
    def forward(self, x): return self.g(self.l(x)).relu()

@must(((r(4,6),), GV[1]+[(r(10,6),)]), 1)
class GhostNormSmallBatch(B):
    "One chunk on the example"
    def __init__(self): super().__init__(l=nn.Linear(6,8,bias=False), g=GBN(8))
    def forward(self, x): return self.g(self.l(x)).relu()

@must(GV, 6)
class GhostNormsGLU(B):
    def __init__(self): super().__init__(l=nn.Linear(6,8,bias=False), g=GBN(8), l2=nn.Linear(4,12,bias=False),
        g2=GBN(12))
    def forward(self, x):
        y = self.g(self.l(x))
        y = y[:,:4]*y[:,4:].sigmoid()
        return self.g2(self.l2(y)).relu()

@must(GV, 3)
class GhostNormSplit(B):
    def __init__(self): super().__init__(l=nn.Linear(6,8), n=BN1(8))
    def forward(self, x): return torch.vstack([self.n(o) for o in self.l(x).split(4)]).relu()

@maybe(GV, 3)
class GhostNormOtherOrder(B):
    def __init__(self): super().__init__(l=nn.Linear(6,8), n=BN1(8))
    def forward(self, x): return torch.cat([self.n(o) for o in self.l(x).split(4)][::-1]).relu()

@trap(GV)
class GhostNormEachItsOwn(B):
    def __init__(self): super().__init__(l=nn.Linear(6,8), ns=nn.ModuleList([BN1(8) for _ in range(6)]))
    def forward(self, x): return torch.cat([n(o) for n,o in zip(self.ns, self.l(x).split(4))]).relu()

@trap(GV)
class GhostNormSomeChunks(B):
    def __init__(self): super().__init__(l=nn.Linear(6,8), n=BN1(8))
    def forward(self, x): return torch.cat([self.n(o) if i<2 else o for i,o in enumerate(self.l(x).split(4))]).relu()

@trap(GV)
class GhostNormOnlyFull(B):
    "The last chunk goes through only if it's full"
    def __init__(self): super().__init__(l=nn.Linear(6,8), n=BN1(8))
    def forward(self, x): return torch.cat([self.n(o) if len(o)==4 else o for o in self.l(x).split(4)]).relu()

@trap(((r(8,6),), GV[1]))
class GhostNormOnlyFull8(GhostNormOnlyFull):
    "The same from an example that has only full ones"

@trap(GV)
class GhostNormBetween(B):
    def __init__(self): super().__init__(l=nn.Linear(6,8), n=BN1(8))
    def forward(self,
        x): return torch.cat([self.n(o if i else o.relu()) for i,o in enumerate(self.l(x).split(4))]).relu()

@trap(GV)
class GhostNormDropsOne(B):
    "The part that the norm doesn't see is used, too"
    def __init__(self): super().__init__(l=nn.Linear(6,8), n=BN1(8))
    def forward(self, x):
        y = self.l(x)
        return torch.cat([self.n(o) for o in y.split(4)[1:]] + [y[:1]]).relu()

@trap(((r(4,6),), [(r(2,6),), (r(6,6,by=4),), (r(8,6,at=2),)]))
class GhostNormLearnedChunks(B):
    "A norm of 4 channels on chunks of the channels"
    def __init__(self): super().__init__(l=nn.Linear(6,8), n=BN1(4))
    def forward(self, x): return torch.cat([self.n(o) for o in self.l(x).chunk(2,1)], 1).relu()

@must(IM(), 2)
class SameNormTwice(B):
    def __init__(self): super().__init__(c=Conv(), n=BN(6))
    def forward(self, x): return self.n(self.n(self.c(x))).relu()

@must(VEC(), 3)
class SameNormThrice(B):
    "Ahead, into a layer after"
    def __init__(self): super().__init__(n=BN1(6), l=nn.Linear(6,8))
    def forward(self, x):
        for _ in range(3): x = self.n(x)
        return self.l(x).relu()

@trap(IM())
class SameNormAroundRelu(B):
    def __init__(self): super().__init__(c=Conv(), n=BN(6))
    def forward(self, x): return self.n(self.n(self.c(x)).relu()).relu()

@trap(((r(2,3,8,8),1), [(r(1,3,8,8),2), (r(2,3,9,8),0), (r(2,3,8,8),3)]))
class SameNormManyTimes(B):
    "As often as the input says"
    def __init__(self): super().__init__(c=Conv(), n=BN(6))
    def forward(self, x, k):
        y = self.c(x)
        for _ in range(k): y = self.n(y)
        return y.relu()

@trap(((r(2,3,8,8),), [(r(1,3,8,8),), (r(5,3,9,8),), (r(2,3,8,20),)]))
class SameNormTwiceIfLarge(B):
    def __init__(self): super().__init__(c=Conv(), n=BN(6))
    def forward(self, x):
        y = self.n(self.c(x))
        return (self.n(y) if x.shape[-1]>16 else y).relu()

@trap(IM())
class SameNormTwiceReadBetween(B):
    def __init__(self): super().__init__(c=Conv(), n=BN(6))
    def forward(self, x):
        y = self.n(self.c(x))
        return self.n(y).relu() + y.sigmoid()

@must(IM(4), 1)
class NormTransposed1x1(B):
    def __init__(self): super().__init__(n=BN(4), c=nn.ConvTranspose2d(4,6,1,groups=2))
    def forward(self, x): return self.c(self.n(x)).relu()

@must(SIG(4), 1)
class NormFTransposed1d(B):
    def __init__(self): super().__init__(n=BN1(4), w=par(4,6,1), b=par(6))
    def forward(self, x): return F.conv_transpose1d(self.n(x), self.w, self.b).relu()

for nm,kw in dict(Stride=dict(kernel_size=1,stride=2), OutputPadding=dict(kernel_size=1,stride=2,output_padding=1),
        KernelIsStride=dict(kernel_size=2,stride=2), Kernel3=dict(kernel_size=3),
        Kernel3Padded=dict(kernel_size=3,padding=1),
        Dilated=dict(kernel_size=2,dilation=2), Cropped=dict(kernel_size=1,padding=1),
        OneAxis=dict(kernel_size=1,stride=(1,2)), Kernel12=dict(kernel_size=(1,2))).items():
    @trap(IM(4), name='NormTransposed'+nm)
    class NormTransposed(B):
        def __init__(self, kw=kw): super().__init__(n=BN(4), c=nn.ConvTranspose2d(4,6,**kw))
        def forward(self, x): return self.c(self.n(x)).relu()

def RNN(name, dec=must, n=1, inputs=None, cls=nn.LSTM, post=None, **kw):
    class NormRNN(B):
        def __init__(self): super().__init__(n=BN1(6), rnn=cls(6,5,batch_first=True,**kw))
        def forward(self, x):
            y,h = self.rnn(self.n(x.transpose(1,2)).transpose(1,2))
            return y,h
    NormRNN.__name__ = name
    if dec is trap: return trap(inputs or SEQ(), name=name)(NormRNN)
    return dec(inputs or SEQ(), n, name=name)(NormRNN)

RNN('NormLSTM')
RNN('NormGRU', cls=nn.GRU)
RNN('NormElmanRNN', cls=nn.RNN, dec=maybe, nonlinearity='relu')
RNN('NormLSTMBidirectional', bidirectional=True)
RNN('NormLSTM3Layers', num_layers=3, bidirectional=True)
RNN('NormGRU2Layers', cls=nn.GRU, num_layers=2, dropout=.3)
RNN('NormLSTMProjected', proj_size=3, dec=maybe)
RNN('NormLSTMNoBias', bias=False, dec=trap)
RNN('NormGRUNoBias', cls=nn.GRU, bias=False, bidirectional=True, dec=trap)

@must(((r(5,2,6),r(1,2,5),r(1,2,5)), [(r(3,1,6),r(1,1,5),r(1,1,5)), (r(7,4,6,by=4),r(1,4,5),r(1,4,5)), (r(5,2,6),
    r(1,2,5,at=3),r(1,2,5))]), 1)
class NormLSTMTimeFirstH0(B):
    def __init__(self): super().__init__(n=BN1(6), rnn=nn.LSTM(6,5))
    def forward(self, x, h, c): return self.rnn(self.n(x.permute(1,2,0)).permute(2,0,1), (h,c))

PK = ((r(3,5,6),torch.tensor([5,3,2])),
[(r(1,4,6),torch.tensor([4])), (r(4,6,6,by=4),torch.tensor([6,6,1,1])), (r(3,5,6,at=3),torch.tensor([5,1,1]))])
@must(PK, 1)
class NormPackedLSTM(B):
    def __init__(self): super().__init__(n=BN1(6), rnn=nn.LSTM(6,5,batch_first=True,bidirectional=True))
    def forward(self, x, lengths):
        x = self.n(x.transpose(1,2)).transpose(1,2)
        y,_ = self.rnn(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        return pad_packed_sequence(y, batch_first=True)[0]

@maybe(PK, 1)
class NormOnPackedData(B):
    "The norm sees the data of a packed sequence"
    def __init__(self): super().__init__(n=BN1(6), rnn=nn.GRU(6,5,batch_first=True))
    def forward(self, x, lengths):
        p = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        p = torch.nn.utils.rnn.PackedSequence(self.n(p.data), p.batch_sizes, p.sorted_indices, p.unsorted_indices)
        return self.rnn(p)[1]

@trap(((r(2,6,6),), [(r(1,6,6),), (r(3,6,6,by=4),), (r(2,6,6,at=3),)]))
class NormOverTimeLSTM(B):
    "As many steps as features"
    def __init__(self): super().__init__(n=BN1(6), rnn=nn.LSTM(6,5,batch_first=True))
    def forward(self, x): return self.rnn(self.n(x))[0]

@trap(SEQ())
class SharedLSTM(B):
    def __init__(self): super().__init__(n=BN1(6), rnn=nn.LSTM(6,5,batch_first=True))
    def forward(self, x): return self.rnn(self.n(x.transpose(1,2)).transpose(1,2))[0] + self.rnn(x.flip(1))[0]

@trap(SEQ())
class LSTMThenNorm(B):
    "Nothing after a nonlinearity"
    def __init__(self): super().__init__(rnn=nn.LSTM(6,8,batch_first=True,proj_size=5), n=BN1(5))
    def forward(self, x): return self.n(self.rnn(x)[0].transpose(1,2)).relu()

@trap(SEQ())
class LSTMWithZeroPadding(B):
    def __init__(self): super().__init__(n=BN1(6), rnn=nn.LSTM(6,5,batch_first=True))
    def forward(self, x): return self.rnn(F.pad(self.n(x.transpose(1,2)), (1,1)).transpose(1,2))[0]

@maybe(SEQ(), 1)
class NormLSTMCell(B):
    "A cell in a loop: each step gets a normed one"
    def __init__(self): super().__init__(n=BN1(6), cell=nn.LSTMCell(6,5))
    def forward(self, x):
        x,hc = self.n(x.transpose(1,2)),None
        for t in range(x.shape[-1]): hc = self.cell(x[...,t], hc)
        return hc[0]

@trap(SEQ(6))
class DecoderCell(B):
    "Its own output is its input from the second step on"
    def __init__(self): super().__init__(n=BN1(6), cell=nn.GRUCell(6,6))
    def forward(self, x):
        x = self.n(x[:,0])
        h = torch.zeros_like(x)
        for _ in range(3): x = h = self.cell(x, h)
        return h

@trap(SEQ())
class TiedGates(B):
    "The LSTM's input weight is read elsewhere"
    def __init__(self): super().__init__(n=BN1(6), rnn=nn.LSTM(6,5,batch_first=True))
    def forward(self, x): return self.rnn(self.n(x.transpose(1,2)).transpose(1,2))[0], x@self.rnn.weight_ih_l0.t()

def norm_last(n, x): return n(x.transpose(1,2)).transpose(1,2)

@must(SEQ(8), 1)
class NormMHA(B):
    def __init__(self): super().__init__(n=BN1(8), a=nn.MultiheadAttention(8,2,batch_first=True))
    def forward(self, x):
        x = norm_last(self.n, x)
        return self.a(x, x, x, need_weights=False)[0]

@must(SEQ(8), 1)
class NormMHAWeights(B):
    def __init__(self): super().__init__(n=BN1(8), a=nn.MultiheadAttention(8,2))
    def forward(self, x):
        x = self.n(x.transpose(1,2)).permute(2,0,1)
        return self.a(x, x, x, average_attn_weights=False)

QKV = ((r(2,5,8),r(2,7,8)), [(r(1,3,8),r(1,4,8)), (r(3,5,8,by=4),r(3,1,8)), (r(2,5,8),r(2,7,8,at=3))])
@must(QKV, 2)
class NormCrossMHA(B):
    "A norm for the query, another for key and value"
    def __init__(self): super().__init__(n=BN1(8), m=BN1(8), a=nn.MultiheadAttention(8,2,batch_first=True))
    def forward(self, q, kv):
        q,kv = norm_last(self.n, q),norm_last(self.m, kv)
        return self.a(q, kv, kv)

@must(QKV, 1)
class NormQueryOnly(B):
    def __init__(self): super().__init__(n=BN1(8), a=nn.MultiheadAttention(8,2,batch_first=True))
    def forward(self, q, kv): return self.a(norm_last(self.n, q), kv, kv)[0]

@must(QKV, 1)
class NormValueOnly(B):
    def __init__(self): super().__init__(n=BN1(8), a=nn.MultiheadAttention(8,2,batch_first=True))
    def forward(self, q, kv): return self.a(q, kv, norm_last(self.n, kv))[0]

@trap(QKV)
class NormQueryReadToo(B):
    def __init__(self): super().__init__(n=BN1(8), a=nn.MultiheadAttention(8,2,batch_first=True))
    def forward(self, q, kv):
        q = norm_last(self.n, q)
        return q.relu() + self.a(q, kv, kv)[0]

@must(((r(2,5,8),r(2,7,4),r(2,7,6)), [(r(1,3,8),r(1,4,4),r(1,4,6)), (r(3,5,8,by=4),r(3,1,4),r(3,1,6)), (r(2,5,8),
    r(2,7,4,at=3),r(2,7,6))]), 3)
class NormKdimVdim(B):
    def __init__(self): super().__init__(n=BN1(8), m=BN1(4), o=BN1(6),
        a=nn.MultiheadAttention(8,2,kdim=4,vdim=6,batch_first=True))
    def forward(self, q, k, v): return self.a(norm_last(self.n, q), norm_last(self.m, k), norm_last(self.o, v))[0]

@trap(SEQ(8))
class NormMHANoBias(B):
    def __init__(self): super().__init__(n=BN1(8), a=nn.MultiheadAttention(8,2,batch_first=True,bias=False))
    def forward(self, x):
        x = norm_last(self.n, x)
        return self.a(x, x, x)[0]

@maybe(SEQ(8), 1)
class NormMHABiasKV(B):
    def __init__(self): super().__init__(n=BN1(8),
        a=nn.MultiheadAttention(8,2,batch_first=True,add_bias_kv=True,add_zero_attn=True))
    def forward(self, x):
        x = norm_last(self.n, x)
        return self.a(x, x, x)[0]

MK = ((r(2,5,8),torch.tensor([[0,0,0,1,1],[0,0,0,0,0]]).bool()),
[(r(1,4,8),torch.zeros(1,4).bool()), (r(3,2,8,by=4),torch.tensor([[0,1]]*3).bool()),
(r(2,5,8,at=3),torch.zeros(2,5).bool())])
@must(MK, 1)
class NormMHAMasked(B):
    def __init__(self): super().__init__(n=BN1(8), a=nn.MultiheadAttention(8,2,batch_first=True))
    def forward(self, x, pad):
        x = norm_last(self.n, x)
        return self.a(x, x, x, key_padding_mask=pad, need_weights=False)[0]

@trap(SEQ(8))
class MHAResidual(B):
    def __init__(self): super().__init__(n=BN1(8), a=nn.MultiheadAttention(8,2,batch_first=True))
    def forward(self, x):
        x = norm_last(self.n, x)
        return x + self.a(x, x, x)[0]

@must(SEQ(8), 1)
class PreNormMHA(B):
    def __init__(self): super().__init__(n=BN1(8), a=nn.MultiheadAttention(8,2,batch_first=True))
    def forward(self, x):
        y = norm_last(self.n, x)
        return x + self.a(y, y, y, need_weights=False)[0]

@maybe(SEQ(8), 1)
class MHAThenNorm(B):
    "Into the output projection"
    def __init__(self): super().__init__(n=BN1(8), a=nn.MultiheadAttention(8,2,batch_first=True))
    def forward(self, x): return norm_last(self.n, self.a(x, x, x)[0]).relu()

@maybe(SEQ(8), 1)
class NormMHAThroughPositions(B):
    "k and v are the normed, q has positions added"
    def __init__(self): super().__init__(n=BN1(8), l=nn.Linear(8,8), a=nn.MultiheadAttention(8,2,batch_first=True))
    def forward(self, x):
        y = norm_last(self.n, x)
        return self.a(self.l(x), y, y)[0]

@trap(SEQ(8))
class MHAQKDiffer(B):
    "q and k with positions, v without, one packed weight: DETR"
    def __init__(self): super().__init__(n=BN1(8), pos=par(1,1,8), a=nn.MultiheadAttention(8,2,batch_first=True))
    def forward(self, x):
        y = norm_last(self.n, x)
        q = y + self.pos*torch.arange(x.shape[1])[None,:,None]
        return self.a(q, q, y)[0]

@trap(SEQ(8))
class SharedMHA(B):
    def __init__(self): super().__init__(n=BN1(8), a=nn.MultiheadAttention(8,2,batch_first=True))
    def forward(self, x):
        y = norm_last(self.n, x)
        y = self.a(y, y, y)[0]
        return self.a(y, y, y)[0]

@must(IM(4), 2, merge=True)
class EvenKernelSame(B):
    "A residual of norms around an even kernel"
    def __init__(self): super().__init__(c=nn.Conv2d(4,4,2,padding='same'), n=BN(4), m=BN(4))
    def forward(self, x): return (self.n(self.c(x)) + self.m(x)).relu()

@must(SIG(4), 2, merge=True)
class EvenKernelSame1d(B):
    def __init__(self): super().__init__(c=nn.Conv1d(4,4,4,padding='same',groups=2), n=BN1(4), m=BN1(4))
    def forward(self, x): return (self.n(self.c(x)) + self.m(x)).relu()

@trap(SIG(4), opts=({},MERGE))
class EvenKernelSameDilated(B):
    "No tap of the kernel lies on the pixel itself"
    def __init__(self): super().__init__(c=nn.Conv1d(4,4,4,padding='same',dilation=3), n=BN1(4), m=BN1(4))
    def forward(self, x): return (self.n(self.c(x)) + self.m(x)).relu()

trap(IM(4), name='EvenKernelPadded', opts=({},MERGE))(type('EvenKernelPadded', (B,), dict(
    __init__=lambda self: B.__init__(self, c=nn.Conv2d(4,4,2,padding=1), n=BN(4), m=BN(4)),
    forward=lambda self, x: (self.n(self.c(x))[...,1:,1:] + self.m(x)).relu())))

# ---- relatives: other operations between
def way(name, f, dec=maybe, inputs=None, layer=None, norm=None, n=1):
    class Way(B):
        def __init__(self): super().__init__(c=layer() if layer else Conv(), n=norm() if norm else BN(6))
        def forward(self, x): return self.n(f(self.c(x))).relu()
    Way.__name__ = name
    return dec(inputs or IM(), name=name)(Way) if dec is trap else dec(inputs or IM(), n, name=name)(Way)

way('Roll', lambda y: y.roll((1,2),(2,3)))
way('RollChannels', lambda y: y.roll(1,1))
way('Rot90', lambda y: torch.rot90(y, 1, (2,3)))
way('RepeatInterleave', lambda y: y.repeat_interleave(2, 2).tile(1,1,1,2))
way('RepeatChannels', lambda y: y.repeat(1,2,1,1), norm=lambda: BN(12), dec=trap)
way('MoveAxis', lambda y: y.movedim(1,-1).movedim(-1,1))
way('UnfoldNoPadding', lambda y: F.unfold(y, 2).unflatten(1,(6,4)))
way('UnfoldPadded', lambda y: F.unfold(y, 3, padding=1).unflatten(1,(6,9)), dec=trap)
way('FoldOverlaps', lambda y: F.fold(F.unfold(y, 3, padding=1), y.shape[-2:], 3, padding=1), dec=trap)
way('MaskedFill', lambda y: y.masked_fill(y<0, 0.), dec=trap)
way('Where', lambda y: torch.where(torch.arange(y.shape[-1])>2, y, 0.), dec=trap)
way('Tril', lambda y: y.tril(), dec=trap)
way('CumSum', lambda y: y.cumsum(-1), dec=trap)
way('Diff', lambda y: y.diff(dim=-1), dec=trap)
way('DiffOfNeighbours', lambda y: y[...,1:]-y[...,:-1], dec=trap)
way('AvgPoolPadded', lambda y: F.avg_pool2d(y, 3, 1, 1), dec=trap)
way('AvgPoolNotCounted', lambda y: F.avg_pool2d(y, 3, 1, 1, count_include_pad=False))
way('AvgPoolCeil', lambda y: F.avg_pool2d(y, 3, 2, ceil_mode=True))
way('AvgPoolDivisor', lambda y: F.avg_pool2d(y, 2, divisor_override=3), dec=trap)
way('LpPool', lambda y: F.lp_pool2d(y, 2, 2), dec=trap)
way('GridZeros',
lambda y: F.grid_sample(y, F.affine_grid(torch.tensor([[[1.2,.1,.3],[0,1.1,.2]]]).double().expand(len(y),2,3),
y.shape, align_corners=False), align_corners=False), dec=trap)
way('Interpolate', lambda y: F.interpolate(y, scale_factor=2., mode='bilinear', align_corners=True))
way('InterpolateBicubic', lambda y: F.interpolate(y, size=(11,13), mode='bicubic'), dec=trap)
way('IndexSelect', lambda y: y.index_select(2, torch.tensor([1,0,1])))
way('IndexSelectChannels', lambda y: y.index_select(1, torch.tensor([5,0,1,1,2,3])), dec=trap)
way('WriteIntoZeros',
lambda y: torch.zeros(*y.shape[:3], y.shape[3]+2, dtype=y.dtype).index_copy(3, torch.arange(1, y.shape[3]+1), y),
dec=trap)
way('AssignBorder', lambda y: torch.cat([torch.zeros_like(y[...,:1]), y[...,1:]], -1), dec=trap)
way('AssignSlice', lambda y: y.clone().index_fill_(3, torch.tensor([0]), 0.), dec=trap)
way('Normalize', lambda y: F.normalize(y, dim=1), dec=trap)
way('ChannelShuffle', lambda y: F.channel_shuffle(y, 3))
way('PixelUnshuffle', lambda y: F.pixel_unshuffle(y, 2), norm=lambda: BN(24), inputs=BIM(), dec=trap)
way('AddLeftRight', lambda y: y + y.flip(-1))
way('AddRolledChannels', lambda y: y + y.roll(1,1), dec=trap)
way('AddTransposed', lambda y: y + y.transpose(2,3), inputs=BIM())
way('AddItself', lambda y: y+y)
way('TimesItself', lambda y: y*y, dec=trap)
way('Lerp', lambda y: torch.lerp(y, y.flip(-1), .3))
way('LerpMore', lambda y: torch.lerp(y, y.flip(-1), 1.7))
way('Negated', lambda y: -y)
way('Reciprocal', lambda y: 1/(y.abs()+1), dec=trap)
way('HaarLow', lambda y: (y[...,::2,:]+y[...,1::2,:])/2, inputs=BIM())
way('HaarHigh', lambda y: (y[...,::2,:]-y[...,1::2,:])/2, inputs=BIM(), dec=trap)
way('MeanMinus', lambda y: y - y.mean((2,3),keepdim=True), dec=trap)
way('MeanPlus', lambda y: y + y.mean((2,3),keepdim=True))
way('FFTReal', lambda y: torch.fft.rfft2(y).real, dec=trap)
way('ClampBetween', lambda y: y.clamp(-1,1), dec=trap)
way('HookedTensor', lambda y: y.detach().requires_grad_(y.requires_grad)*1)
way('NumpyBetween', lambda y: torch.from_numpy(y.detach().numpy()), dec=trap)

# ================================================================ 5. quantizable and prepared models
group('5')
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import QuantStub, DeQuantStub
import torch.ao.quantization as tq, torch.ao.nn.intrinsic as nni

@must(IM(), 2)
class FloatAdd(B):
    def __init__(self): super().__init__(c=Conv(), n=BN(6), d=Conv(k=1,p=0), m=BN(6), ff=FloatFunctional())
    def forward(self, x): return self.ff.add(self.n(self.c(x)), self.m(self.d(x))).relu()

@must(IM(), 3)
class FloatAddRelu(B):
    def __init__(self): super().__init__(c=Conv(), n=BN(6), d=Conv(k=1,p=0), m=BN(6), ff=FloatFunctional(),
        e=Conv(6,6), o=BN(6))
    def forward(self, x): return self.o(self.e(self.ff.add_relu(self.n(self.c(x)), self.m(self.d(x))))).relu()

@must(IM(), 1)
class FloatCatBetween(B):
    def __init__(self): super().__init__(c=Conv(3,4), d=Conv(3,2), n=BN(6), ff=FloatFunctional())
    def forward(self, x): return self.n(self.ff.cat([self.c(x), self.d(x)], 1)).relu()

@must(IM(), 1)
class FloatAddBetween(B):
    "The sum is between the layers and the norm"
    def __init__(self): super().__init__(c=Conv(), d=Conv(), n=BN(6), ff=FloatFunctional())
    def forward(self, x): return self.n(self.ff.add(self.c(x), self.d(x))).relu()

@trap(IM())
class FloatMul(B):
    def __init__(self): super().__init__(c=Conv(), d=Conv(), n=BN(6), ff=FloatFunctional())
    def forward(self, x): return self.n(self.ff.mul(self.c(x), self.d(x).sigmoid())).relu()

@trap(IM())
class FloatAddReluBetween(B):
    def __init__(self): super().__init__(c=Conv(), d=Conv(), n=BN(6), ff=FloatFunctional())
    def forward(self, x): return self.n(self.ff.add_relu(self.c(x), self.d(x)))

@maybe(IM(), 1)
class FloatScalars(B):
    def __init__(self): super().__init__(c=Conv(), n=BN(6), ff=FloatFunctional())
    def forward(self, x): return self.n(self.ff.add_scalar(self.ff.mul_scalar(self.c(x), 2.), .5)).relu()

@must(IM(), 1)
class Stubs(B):
    def __init__(self): super().__init__(q=QuantStub(), c=Conv(), n=BN(6), dq=DeQuantStub())
    def forward(self, x): return self.dq(self.n(self.c(self.q(x))).relu())

def fused_float():
    m = fill(nn.Sequential(Conv(), nn.ReLU(), Conv(6,6), BN(6), nn.ReLU(), Conv(6,4), BN(4)).double().eval())
    return tq.fuse_modules(m, [['0','1']])
must(IM(), 2, raw=True, name='FusedFloatModules')(fused_float)

class FusedBNReLU(B):
    def __init__(self): super().__init__(c=Conv(), f=nni.BNReLU2d(BN(6), nn.ReLU()),
        d=nni.ConvReLU2d(Conv(6,6), nn.ReLU()), n=BN(6), e=Conv(6,4,p=0))
    def forward(self, x): return self.e(self.n(self.d(self.f(self.c(x)))))
maybe(IM(), 2)(FusedBNReLU)

def q_resnet():
    torch.manual_seed(0)
    m = torchvision.models.quantization.resnet18(weights=None, quantize=False)
    return fill(m.double().eval())
must(((r(1,3,33,33),), [(r(2,3,32,32),), (r(1,3,40,33,by=3),), (r(1,3,33,33,at=2),)]), 20, raw=True,
name='QuantizableResnet18')(q_resnet)

def q_mobilenet():
    torch.manual_seed(0)
    return fill(torchvision.models.quantization.mobilenet_v2(weights=None, quantize=False,
        width_mult=.25).double().eval())
must(((r(1,3,33,33),), [(r(2,3,32,32),), (r(1,3,40,33,by=3),), (r(1,3,33,33,at=2),)]), 52, raw=True,
name='QuantizableMobilenetV2')(q_mobilenet)

def small_q():
    torch.manual_seed(0)
    return fill(nn.Sequential(QuantStub(), Conv(), BN(6), nn.ReLU(), Conv(6,4), BN(4), DeQuantStub()))

def qat_prepared():
    m = small_q().train()
    m.qconfig = tq.get_default_qat_qconfig('fbgemm')
    m = tq.prepare_qat(tq.fuse_modules_qat(m, [['1','2','3'],['4','5']]))
    m(r(2,3,8,8).float())
    return m.eval()
F32 = ((r(2,3,8,8).float(),), [(r(1,3,8,8).float(),), (r(2,3,9,8).float(),), (r(2,3,8,8,at=3).float(),)])
trap(F32, name='QATPrepared', raw=True, opts=({},), tol=1e-5)(qat_prepared)

def prepared():
    m = small_q().eval()
    m.qconfig = tq.get_default_qconfig('fbgemm')
    m = tq.prepare(m)
    m(r(2,3,8,8).float())
    return m
trap(F32, name='PreparedWithObservers', raw=True, opts=({},), tol=1e-5)(prepared)

def converted():
    m = small_q().eval()
    m = tq.fuse_modules(m, [['1','2','3'],['4','5']])
    m.qconfig = tq.get_default_qconfig('fbgemm')
    m = tq.prepare(m)
    m(r(2,3,8,8).float())
    return tq.convert(m)
trap(F32, name='Converted', raw=True, opts=({},), tol=1e-5)(converted)

def dynamic():
    torch.manual_seed(0)
    return tq.quantize_dynamic(fill(nn.Sequential(nn.Linear(6,8), BN1(8), nn.ReLU(), nn.Linear(8,4),
        BN1(4)).eval()), {nn.Linear})
trap(((r(2,6).float(),), [(r(1,6).float(),), (r(5,6).float(),), (r(2,6,at=3).float(),)]),
name='QuantizedDynamically', raw=True, opts=({},), tol=1e-5)(dynamic)

# ================================================================ 6. exported programs and graphs
group('6')

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.c,self.n,self.d,self.m,self.e,self.o = Conv(bias=False),BN(6),Conv(6,6,groups=6),BN(6),Conv(6,4,k=1,
            p=0,bias=False),BN(4)
    def forward(self, x):
        y = self.n(self.c(x)).relu()
        return self.o(self.e(F.hardtanh(self.m(self.d(y))) + y)).mean((2,3))

class SmallLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.l,self.n,self.k = nn.Linear(6,8,bias=False),BN1(8),nn.Linear(8,3)
    def forward(self, x): return self.k(self.n(self.l(x)).relu())

class SmallShared(nn.Module):
    "One layer twice, with different norms: nothing folds back"
    def __init__(self):
        super().__init__()
        self.c,self.n,self.m = Conv(3,3),BN(3),BN(3)
    def forward(self, x): return self.m(self.c(self.n(self.c(x)).relu())).relu()

def seeded(cls):
    torch.manual_seed(3)
    return fill(cls().double().eval())

def exported(cls, x, dynamic=None, decompose=False):
    def make():
        shapes = ({i:torch.export.Dim.DYNAMIC for i in dynamic},) if dynamic else None
        ep = torch.export.export(seeded(cls), x, dynamic_shapes=shapes)
        if decompose: ep = ep.run_decompositions()
        return ep.module()
    return make

FIX = IM(fixed=True)
EXP = dict(raw=True, accept='export')
must(FIX, 3, name='Exported', also=[(3,LS,True)], **EXP)(exported(Small, FIX[0]))
must(BIM(), 3, name='ExportedDynamicBatch', **EXP)(exported(Small, BIM()[0], [0]))
must(IM(), 3, name='ExportedDynamicSizes', **EXP)(exported(Small, IM()[0], [0,2,3]))
maybe(FIX, 3, name='ExportedDecomposed', **EXP)(exported(Small, FIX[0], decompose=True))
must(VEC(), 1, name='ExportedLinear', **EXP)(exported(SmallLinear, VEC()[0], [0]))
trap(FIX, name='ExportedShared', opts=({},LS), raw=True)(exported(SmallShared, FIX[0]))
must(FIX, 2, name='ExportedSamePad', **EXP)(exported(SamePadBeforeNorms, FIX[0]))
maybe(FIX, 4, name='ExportedFrozen', kind='affine', also=[(4,LS,True)], **EXP)(exported(DetrFrozen, FIX[0]))
must(VEC(), 1, name='ExportedMatmul', **EXP)(exported(MatmulPlusBias, VEC()[0], [0]))
maybe(FIX, 3, name='ExportedInSequential', **EXP)(lambda: nn.Sequential(exported(Small, FIX[0])()))
trap(FIX, name='ExportedPadInside', raw=True)(exported(NormBeforePadInside, FIX[0]))
trap(FIX, name='ExportedMask', raw=True)(exported(MaskedWeight, FIX[0]))
trap(FIX, name='ExportedTrainingNorm', raw=True)(exported(FBatchNormTraining, FIX[0]))

def traced_fx(cls): return lambda: torch.fx.symbolic_trace(seeded(cls))
must(IM(), 3, name='FxTraced', raw=True)(traced_fx(Small))
must(IM(), 1, name='FxMatmulPlusBias', raw=True)(lambda: torch.fx.symbolic_trace(seeded(ConstantInChild)))
must(VEC(), 1, name='FxMatmul', raw=True)(traced_fx(MatmulPlusBias))
maybe(IM(), 1, name='FxBareBatchNorm', raw=True, layer_scale=True)(traced_fx(FBatchNormBare))
maybe(IM(), 2, name='FxBothWays', raw=True, layer_scale=True)(traced_fx(FBatchNormBothWays))
trap(IM(), name='FxMasked', raw=True)(traced_fx(MaskedWeight))
trap(IM(), name='FxWeightReadElsewhere', raw=True)(traced_fx(WeightReadElsewhere))
trap(IM(), name='Scripted', raw=True, opts=({},))(lambda: torch.jit.trace(seeded(Small), FIX[0]))

# ================================================================ 8. names, unshare
group('8')

class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem,self.body = nn.Sequential(Conv(), BN(6), nn.ReLU()),nn.Sequential(Conv(6,6), BN(6), nn.ReLU(),
            Conv(6,6), BN(6))
        self.head = nn.Sequential(Conv(6,4), BN(4))
    def forward(self, x): return self.head(self.body(self.stem(x)).relu())

must(IM(), 1, name='NamedOnlyStem', at_most=1, only=['stem.*'])(Named)
must(IM(), 3, name='NamedSkipHead', at_most=3, skip=['head.*'])(Named)
must(IM(), 1, name='NamedOnlyBodySkipOne', at_most=1, only=['body.*'], skip=['body.1'])(Named)
must(IM(), 0, name='NamedSkipAll', at_most=0, skip=['*'])(Named)
must(IM(), 3, name='NamedSkipLayer', at_most=3, skip=['body.3'])(Named)
must(IM(), 4, name='NamedAll')(Named)

class SepBN(nn.Module):
    "RTMDet's head: convolutions shared between levels, a norm for each"
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([Conv(3,3), Conv(3,4)])
        self.norms = nn.ModuleList([nn.ModuleList([BN(3), BN(4)]) for _ in range(3)])
    def forward(self, x):
        res = []
        for level,norms in enumerate(self.norms):
            y = x[...,::level+1,::level+1]
            for c,n in zip(self.convs, norms): y = n(c(y)).relu()
            res.append(y)
        return res

must(IM(), 6, name='SepBN', unshare=True)(SepBN)
trap(IM(), name='SepBNAsIs')(SepBN)

class SharedConvTwoNorms(B):
    def __init__(self): super().__init__(c=Conv(), n=BN(6), m=BN(6))
    def forward(self, x): return self.n(self.c(x)).relu() + self.m(self.c(x.flip(-1))).relu()
must(IM(), 2, unshare=True)(SharedConvTwoNorms)
trap(IM(), name='SharedConvTwoNormsAsIs')(SharedConvTwoNorms)

class SharedConvOneWithout(B):
    "One of its uses has no norm"
    def __init__(self): super().__init__(c=Conv(), n=BN(6))
    def forward(self, x): return self.n(self.c(x)).relu() + self.c(x.flip(-1)).relu()
maybe(IM(), 1, unshare=True)(SharedConvOneWithout)
trap(IM(), name='SharedConvOneWithoutAsIs')(SharedConvOneWithout)

class SharedBySize(B):
    "Which use comes first depends on the input"
    def __init__(self): super().__init__(c=Conv(3,3), n=BN(3), m=BN(3))
    def forward(self, x):
        if x.shape[-1]>10: return self.m(self.c(x)).relu()
        return self.n(self.c(x)).relu() + self.m(self.c(x.flip(-1))).relu()
trap(((r(2,3,8,8),), [(r(1,3,8,20),), (r(2,3,9,8),), (r(2,3,8,12),)]), opts=({},UNSHARE))(SharedBySize)

class SharedInLoop(B):
    def __init__(self): super().__init__(c=Conv(3,3), n=BN(3), m=BN(3))
    def forward(self, x, k=2):
        for i in range(k): x = (self.n if i%2 else self.m)(self.c(x)).relu()
        return x
trap(((r(2,3,8,8),2), [(r(1,3,8,8),1), (r(2,3,9,8),3), (r(2,3,8,8),5)]), opts=({},UNSHARE))(SharedInLoop)

class TiedByParameter(B):
    "Two convolutions hold one parameter"
    def __init__(self):
        super().__init__(c=Conv(), d=Conv(), n=BN(6), m=BN(6))
        self.d.weight = self.c.weight
    def forward(self, x): return self.n(self.c(x)).relu() + self.m(self.d(x)).relu()
trap(IM(), opts=({},LS,UNSHARE))(TiedByParameter)

from torch.utils.checkpoint import checkpoint
# ================================================================ 7. merging that stops too soon
group('7')

class LAB(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale,self.bias = par(1),par(1)
    def forward(self, x): return self.scale*x + self.bias

class LearnableRep(nn.Module):
    "PP-LCNetV3's"
    def __init__(self, n):
        super().__init__()
        self.identity = BN(n)
        self.convs = nn.ModuleList([nn.Sequential(OrderedDict(conv=Conv(n,n,bias=False), bn=BN(n))) for _ in range(3)])
        self.one = nn.Sequential(OrderedDict(conv=nn.Conv2d(n,n,1,bias=False), bn=BN(n)))
        self.lab = LAB()
    def forward(self, x):
        y = self.one(x) + self.identity(x)
        for c in self.convs: y = y + c(x)
        return F.hardswish(self.lab(y))

class PPLCNet(B):
    def __init__(self): super().__init__(stem=nn.Sequential(Conv(), BN(6)), a=LearnableRep(6), b=LearnableRep(6))
    def forward(self, x): return self.b(self.a(self.stem(x)))
must(IM(), 11, merge=True)(PPLCNet)

class RepBlock(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.c,self.n,self.d,self.m,self.i = Conv(n,n,bias=False),BN(n),Conv(n,n,k=1,p=0,bias=False),BN(n),BN(n)
    def forward(self, x): return (self.n(self.c(x)) + self.m(self.d(x)) + self.i(x)).relu()

class Checkpointed(nn.Module):
    "transformers' GradientCheckpointingLayer wraps `forward`"
    gradient_checkpointing = False
    def __init_subclass__(cls, **kw):
        super().__init_subclass__(**kw)
        forward = cls.forward
        @functools.wraps(forward)
        def wrapper(self, *args, **kw):
            outermost = type(self).forward is wrapper
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled() and outermost:
                return checkpoint(functools.partial(forward, self), *args, use_reentrant=True, **kw)
            return forward(self, *args, **kw)
        cls.forward = wrapper
class CheckpointedRep(Checkpointed):
    def __init__(self, n):
        super().__init__()
        self.c,self.n,self.d,self.m,self.i = Conv(n,n,bias=False),BN(n),Conv(n,n,k=1,p=0,bias=False),BN(n),BN(n)
    def forward(self, x): return (self.n(self.c(x)) + self.m(self.d(x)) + self.i(x)).relu()


class WithCheckpointed(B):
    def __init__(self): super().__init__(stem=Conv(), a=CheckpointedRep(6), b=CheckpointedRep(6))
    def forward(self, x): return self.b(self.a(self.stem(x)))
must(IM(), 6, merge=True)(WithCheckpointed)
class PlainRepBlocks(B):
    def __init__(self): super().__init__(stem=Conv(), a=RepBlock(6), b=RepBlock(6))
    def forward(self, x): return self.b(self.a(self.stem(x)))
must(IM(), 6, merge=True)(PlainRepBlocks)

class PartOfASum(B):
    "A residual of another size is no layer; the other two are"
    def __init__(self): super().__init__(r=nn.Sequential(RepBlock(4)), n=BN(4), k=Conv(4,4), kn=BN(4))
    def forward(self, x):
        x = self.r(x)
        return (self.n(x) + self.kn(self.k(x)) + x.sigmoid()).relu()
must(IM(4), 5, merge=True, sure=False)(PartOfASum)

# ================================================================ r: relatives that nobody listed
group('r')
from torch.nn.functional import conv2d as _conv2d, batch_norm as _batch_norm
from torch.nn.utils import parametrizations, prune

class MemSwish(torch.autograd.Function):
    "efficientnet_pytorch's"
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x*torch.sigmoid(x)
    @staticmethod
    def backward(ctx, g): return g

class MemoryEfficientSwish(nn.Module):
    def forward(self, x): return MemSwish.apply(x)

@must(IM(), 2)
class AutogradFunction(B):
    def __init__(self): super().__init__(c=StaticPadConv(3,6,3,bias=False), n=BN(6), s=MemoryEfficientSwish(),
        d=StaticPadConv(6,4,1,bias=False), m=BN(4))
    def forward(self, x): return self.m(self.d(self.s(self.n(self.c(x)))))

@trap(IM())
class AutogradFunctionBetween(B):
    def __init__(self): super().__init__(c=Conv(), s=MemoryEfficientSwish(), n=BN(6))
    def forward(self, x): return self.n(self.s(self.c(x)))

@must(IM(), 1)
class KeywordCalls(B):
    def __init__(self): super().__init__(w=par(6,3,3,3), b=par(6), n=BN(6))
    def forward(self,
        x): return self.n(input=F.conv2d(bias=self.b, padding=1, weight=self.w, input=F.pad(input=x, pad=(1,1)))).relu()

@must(IM(), 1)
class ImportedByName(B):
    "Functions that a module of the user's imported by name"
    def __init__(self): super().__init__(w=par(6,3,3,3), b=par(6), n=BN(6))
    def forward(self, x): return self.n(_conv2d(x, self.w, self.b)).relu()

@must(IM(), 1, layer_scale=True)
class ImportedByNameNorm(B):
    def __init__(self): super().__init__(c=Conv(), n=BN(6))
    def forward(self, x): return _batch_norm(self.c(x), self.n.running_mean, self.n.running_var,
        weight=self.n.weight, bias=self.n.bias).relu()

@must(VEC(), 1)
class LinearPlusBias(B):
    def __init__(self): super().__init__(w=par(8,6), b=par(8), n=BN1(8))
    def forward(self, x): return self.n(F.linear(x, self.w) + self.b).relu()

@must(IM(), 1)
class ConvPlusBias(B):
    def __init__(self): super().__init__(w=par(6,3,3,3), b=par(1,6,1,1), n=BN(6))
    def forward(self, x): return self.n(F.conv2d(x, self.w) + self.b).relu()

@maybe(VEC(), 1)
class LoraAdds(B):
    def __init__(self): super().__init__(l=nn.Linear(6,8), A=par(6,2), Bm=par(2,8), n=BN1(8))
    def forward(self, x): return self.n(self.l(x) + .5*(x@self.A@self.Bm)).relu()

@trap(VEC())
class LoraInWeight(B):
    def __init__(self): super().__init__(l=nn.Linear(6,8), A=par(6,2), Bm=par(2,8), n=BN1(8))
    def forward(self, x): return self.n(F.linear(x, self.l.weight + (self.A@self.Bm).t(), self.l.bias)).relu()

@must(IDS(4,5), 1)
class FEmbeddingSum(B):
    def __init__(self): super().__init__(t=par(10,6), p=par(5,6), n=BN1(6))
    def forward(self,
        i): return self.n((F.embedding(i, self.t) + F.embedding(torch.arange(i.shape[1]), self.p)).transpose(1,
        2)).relu()

@must(((ids(4,n=10),), [(ids(1,n=10),), (ids(9,n=10),), (torch.zeros(2).long(),)]), 1)
class OneHotMatmul(B):
    def __init__(self): super().__init__(W=par(10,6), b=par(6), n=BN1(6))
    def forward(self, i): return self.n(F.one_hot(i, 10).to(self.W.dtype)@self.W + self.b).relu()

SQ = ((r(2,6,6),), [(r(1,6,6),), (r(3,6,6,by=4),), (r(2,6,6,at=3),)])
@must(SQ, 1)
class SquareWTimesX(B):
    def __init__(self): super().__init__(W=par(6,6), b=par(6,1), n=BN1(6))
    def forward(self, x): return self.n(self.W@x + self.b).relu()

@trap(SQ)
class SquareXTimesW(B):
    "The layer works on the last axis, the norm on the one before"
    def __init__(self): super().__init__(W=par(6,6), b=par(6), n=BN1(6))
    def forward(self, x): return self.n(x@self.W + self.b).relu()

@trap(SQ)
class SquareLinearOtherAxis(B):
    def __init__(self): super().__init__(w=par(6,6), b=par(6), n=BN1(6))
    def forward(self, x): return self.n(F.linear(x, self.w, self.b)).relu()

@trap(((r(6,6),), [(r(6,6),), (r(6,6,by=4),), (r(6,6,at=3),)]))
class ParameterIsTheInput(B):
    "The input is the weight, the parameter the input"
    def __init__(self): super().__init__(P=par(6,6), n=BN1(6))
    def forward(self, x): return self.n(F.linear(self.P, x)).relu()

@trap(((r(2,3,8,8),r(2,3,3,3)), [(r(1,3,9,8),r(2,3,3,3)), (r(3,3,8,8,by=4),r(2,3,1,1)), (r(2,3,8,8,at=2),r(2,3,5,5))]))
class Correlation(B):
    "Features of one image are the filter for those of another"
    def __init__(self): super().__init__(c=Conv(), d=Conv(), n=BN(2))
    def forward(self, x, z): return self.n(F.conv2d(self.c(x), self.d(z))).relu()

@trap(VEC())
class Cosine(B):
    def __init__(self): super().__init__(W=par(8,6), n=BN1(8))
    def forward(self, x): return self.n(F.linear(F.normalize(x), F.normalize(self.W))).relu()

@trap(IM())
class SharedFilter(B):
    "One filter for all channels"
    def __init__(self): super().__init__(w=par(1,1,3,3), b=par(3), n=BN(3))
    def forward(self, x): return self.n(F.conv2d(x, self.w.expand(3,1,3,3), self.b, groups=3)).relu()

@trap(IM())
class RepeatedFilter(B):
    def __init__(self): super().__init__(w=par(3,3,3,3), b=par(3), n=BN(6))
    def forward(self, x): return self.n(F.conv2d(x, self.w.repeat(2,1,1,1), self.b.repeat(2))).relu()

@trap(((r(2,3,8,8),6), [(r(1,3,8,8),6), (r(2,3,9,8),4), (r(2,3,8,8),2)]))
class Slimmable(B):
    def __init__(self): super().__init__(w=par(6,3,3,3), b=par(6), ns=nn.ModuleDict({'2':BN(2),'4':BN(4),'6':BN(6)}))
    def forward(self, x, k): return self.ns[str(k)](F.conv2d(x, self.w[:k], self.b[:k])).relu()

@trap(((r(2,3,8,8),0), [(r(1,3,8,8),1), (r(2,3,9,8),0), (r(2,3,8,8),2)]))
class DomainNorms(B):
    def __init__(self): super().__init__(w=par(6,3,3,3), b=par(6), ns=nn.ModuleList([BN(6),BN(6),BN(6)]))
    def forward(self, x, d): return self.ns[d](F.conv2d(x, self.w, self.b)).relu()

@trap(IM())
class FixedFilterBuffer(B):
    "Blur by a buffer, zero padded"
    def __init__(self): super().__init__(n=BN(3), k=torch.ones(3,1,3,3), c=Conv())
    def forward(self, x): return self.c(F.conv2d(self.n(x), self.k, padding=1, groups=3))

@trap(IM())
class FilterBufferThenNorm(B):
    def __init__(self): super().__init__(n=BN(3), k=torch.ones(3,1,3,3))
    def forward(self, x): return self.n(F.conv2d(x, self.k, padding=1, groups=3)).relu()

@trap(IM())
class FilterBufferUpdated(B):
    def __init__(self): super().__init__(n=BN(3), k=torch.ones(3,1,3,3), b=torch.ones(3))
    def forward(self, x):
        y = self.n(F.conv2d(x, self.k, self.b, padding=1, groups=3)).relu()
        self.k.mul_(.9)
        return y

class PlainTensor(B):
    "A weight that isn't registered"
    def __init__(self):
        super().__init__(n=BN(6), b=par(6))
        self.__dict__['w'] = torch.randn(6,3,3,3).double()
    def forward(self, x): return self.n(F.conv2d(x, self.w, self.b)).relu()
trap(IM())(PlainTensor)

def pruned(m, name):
    prune.random_unstructured(m[0], name, .5)
    with torch.no_grad(): m(r(1,3,8,8))
def with_(f, cls=None):
    def make():
        m = fill((cls or (lambda: nn.Sequential(Conv(), BN(6), nn.ReLU(), Conv(6,4,p=0), BN(4))))().double().eval())
        f(m)
        return m.eval()
    return make
trap(IM(), name='WeightNorm', raw=True)(with_(lambda m: parametrizations.weight_norm(m[0])))
trap(IM(), name='SpectralNorm', raw=True)(with_(lambda m: parametrizations.spectral_norm(m[0])))
trap(IM(), name='Pruned', raw=True)(with_(lambda m: pruned(m, 'weight')))
trap(IM(), name='PrunedBias', raw=True)(with_(lambda m: pruned(m, 'bias')))

def patch_forward(f):
    "Copies of such a module still run the original"
    def _patch(m):
        old = m[3].forward
        m[3].forward = lambda x: f(old, x)
    return _patch
def patch_method(f):
    def _patch(m): m[3].forward = types.MethodType(lambda self, x: f(functools.partial(nn.Conv2d.forward, self), x),
        m[3])
    return _patch
def wide(old, x): return old(F.pad(x, (1,1,0,0), mode='circular'))
def acts(old, x): return old(x).relu()
trap(IM(), name='ForwardReplacedByClosure', raw=True)(with_(patch_forward(wide)))
trap(IM(), name='ForwardReplacedActs', raw=True)(with_(patch_forward(acts)))
maybe(IM(), 2, name='ForwardReplacedByMethod', raw=True)(with_(patch_method(wide)))
trap(IM(), name='ForwardReplacedByMethodActs', raw=True)(with_(patch_method(acts)))
trap(IM(), name='HookChangesOutput', raw=True)(with_(lambda m: m[3].register_forward_hook(lambda m, i, o: o.abs())))
trap(IM(), name='HookReadsWeight',
raw=True)(with_(lambda m: m[3].register_forward_hook(lambda m, i, o: o + m.weight.mean())))

# parameters read out of sight
def disabled(m, w):
    with torch._C.DisableTorchFunctionSubclass(): return w.norm()
@torch.jit.script
def scripted_norm(w:Tensor): return w.norm()
class NormFn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w): return w.norm()
    @staticmethod
    def backward(ctx, g): return g
READS = dict(
    Hidden=disabled, Script=lambda m, w: scripted_norm(w), Function=lambda m, w: NormFn.apply(w),
    Numpy=lambda m, w: float(abs(w.detach().numpy()).sum()), ToList=lambda m, w: sum(w.flatten().tolist()),
    Item=lambda m, w: w.flatten()[0].item(), Format=lambda m, w: float(f'{w.flatten()[0]:.9f}'), Float=lambda m,
    w: float(w.norm()),
    Foreach=lambda m, w: sum(torch._foreach_norm(list(m.parameters()))),
    StateDict=lambda m, w: sum(v.double().norm() for v in m.state_dict().values()),
    Named=lambda m, w: sum(p.norm() for n,p in m.named_parameters() if 'weight' in n or n=='w'),
    Data=lambda m, w: w.data.norm(), Detach=lambda m, w: w.detach().clone().norm(), If=lambda m,
    w: next(i*1. for i in range(10**4) if i/50>w.norm()),
    Dict=lambda m, w: m._parameters['w'].norm() if 'w' in m._parameters else m.c._parameters['weight'].norm(),
    Getattr=lambda m, w: getattr(m, 'w', w).norm(), Copy=lambda m, w: copy.deepcopy(w).norm(), Storage=lambda m,
    w: sum(list(w.untyped_storage())[:64]),
    Numel=lambda m, w: w.numel()*1., Shape=lambda m, w: w.shape[0]*1., Vector=lambda m,
    w: nn.utils.parameters_to_vector(m.parameters()).norm(),
    Deref=lambda m,
    w: torch.func.functional_call(m.p if hasattr(m,'p') else m.c, {'weight':w}, (torch.ones(1,3,5,5).double(),)).norm())
for nm,read in READS.items():
    @trap(IM(), name='FunctionReadBy'+nm)
    class ReadOfFunction(B):
        def __init__(self, read=read): super().__init__(w=par(6,3,3,3), b=par(6), n=BN(6), p=Conv(), read=read)
        def forward(self, x): return self.n(F.conv2d(x, self.w, self.b)).relu(), self.read(self, self.w)
    @trap(IM(), name='ModuleReadBy'+nm, opts=({},))
    class ReadOfModule(B):
        def __init__(self, read=read): super().__init__(c=Conv(), n=BN(6), read=read)
        def forward(self, x): return self.n(self.c(x)).relu(), self.read(self, self.c.weight)
    if nm in ('Deref','Dict'): continue
    @trap(IM(), name='NormReadBy'+nm, opts=({},))
    class ReadOfNorm(B):
        def __init__(self, read=read, nm=nm): super().__init__(c=Conv(), n=BN(6), read=read,
            whole=nm in ('Foreach','StateDict','Vector','Named'))
        def forward(self, x): return self.n(self.c(x)).relu(), self.read(self.n if self.whole else self, self.n.weight)

@trap(IM())
class AliasOfWeight(B):
    "A buffer that is a view of the weight"
    def __init__(self):
        super().__init__(w=par(6,3,3,3), b=par(6), n=BN(6))
        self.register_buffer('first', self.w.detach()[0])
    def forward(self, x): return self.n(F.conv2d(x, self.w, self.b)).relu(), F.conv2d(x, self.first[None])

def aliased():
    m = fill(AliasOfWeight().double().eval())
    m.first = m.w.detach()[0]
    return m
trap(IM(), name='AliasOfWeightLive', raw=True)(aliased)

@maybe(IM(), 1)
class CheckpointedPart(B):
    def __init__(self): super().__init__(c=Conv(), n=BN(6))
    def forward(self, x): return checkpoint(lambda t: self.n(self.c(t)).relu(), x, use_reentrant=False)

@maybe(IM(), 2)
class FunctionalCallOfChild(B):
    def __init__(self): super().__init__(s=nn.Sequential(Conv(), BN(6), nn.ReLU(), Conv(6,4), BN(4)))
    def forward(self, x): return torch.func.functional_call(self.s, dict(self.s.named_parameters()), (x,))

@maybe(SEQ(8), 1)
class ClsToken(B):
    "A parameter is put in front, the norm sees it, too"
    def __init__(self): super().__init__(l=nn.Linear(8,6), cls=par(1,1,6), n=BN1(6))
    def forward(self, x): return norm_last(self.n, torch.cat([self.cls.expand(len(x),-1,-1), self.l(x)], 1)).relu()

@trap(SEQ(8))
class ZerosInFront(B):
    def __init__(self): super().__init__(l=nn.Linear(8,6), n=BN1(6))
    def forward(self, x): return norm_last(self.n, torch.cat([x.new_zeros(len(x),1,6), self.l(x)], 1)).relu()

GR = ((r(5,6),r(5,5)), [(r(3,6),r(3,3)), (r(7,6,by=4),r(7,7)), (r(5,6),torch.eye(5).double())])
@maybe(GR, 1)
class GCN(B):
    "A@(x@W) + b: the scale goes into W, the shift into b"
    def __init__(self): super().__init__(W=par(6,8), b=par(8), n=BN1(8))
    def forward(self, x, A): return self.n(A@(x@self.W) + self.b).relu()

@trap(GR)
class GCNNoBias(B):
    def __init__(self): super().__init__(W=par(6,8), n=BN1(8))
    def forward(self, x, A): return self.n(A@(x@self.W)).relu()

@trap(GR)
class GCNBiasInside(B):
    "The rows of A don't sum to 1"
    def __init__(self): super().__init__(l=PygLinear(6,8), n=BN1(8))
    def forward(self, x, A): return self.n(A@self.l(x)).relu()

class ZeroGamma(B):
    def __init__(self, pool=False):
        super().__init__(c=Conv(), n=BN(6), pool=pool)
        self.n._keep = ('weight',)
        with torch.no_grad(): self.n.weight.copy_(torch.tensor([0.,1.,0.,2.,0.,.5]))
    def forward(self, x):
        y = F.conv2d(x, self.c.weight, self.c.bias)
        return self.n(F.max_pool2d(y, 2) if self.pool else y).relu()
must(IM(), 1)(ZeroGamma)
def zero_gamma_pool(): return ZeroGamma(True)
maybe(IM(), 1)(zero_gamma_pool)

class ZeroGammaConstant(B):
    "A norm that erases channels, past constants"
    def __init__(self):
        super().__init__(c=Conv(), k=par(6,1,1), n=BN(6))
        self.n._keep = ('weight',)
        with torch.no_grad(): self.n.weight.copy_(torch.tensor([0.,1.,0.,2.,0.,.5]))
    def forward(self, x): return self.n(self.c(x)*self.k + self.k).relu()
trap(IM())(ZeroGammaConstant)

@must(IM(), 1)
class PositiveThroughMax(B):
    "All scales on the way are positive"
    def __init__(self):
        super().__init__(c=Conv(), n=BN(6), k=par(6,1,1))
        self.n._keep = self._keep = ('weight','k')
        with torch.no_grad(): self.k.fill_(2.)
    def forward(self, x): return self.n(F.max_pool2d(self.c(x)*self.k, 2)).relu()

@trap(IM())
class NegativeConstantThroughMax(B):
    "The norm is positive, the constant isn't; crossing both must keep the order"
    def __init__(self):
        super().__init__(c=Conv(), n=BN(6), k=par(6,1,1))
        self.n._keep = ('weight',)
        with torch.no_grad(): self.n.weight.fill_(1.5)
    def forward(self, x): return self.n(F.max_pool2d(self.c(x)*self.k, 2)).relu()

@maybe(GV, 3)
class GhostBySlices(B):
    def __init__(self): super().__init__(l=nn.Linear(6,8), n=BN1(8))
    def forward(self, x):
        y = self.l(x)
        return torch.cat([self.n(y[i:i+4]) for i in range(0, len(y), 4)]).relu()

@trap(GV)
class GhostOverlapping(B):
    "The parts overlap"
    def __init__(self): super().__init__(l=nn.Linear(6,8), n=BN1(8))
    def forward(self, x):
        y = self.l(x)
        return torch.cat([self.n(y[i:i+4]) for i in range(0, len(y), 3)]).relu()

@trap(GV)
class GhostSums(B):
    "The parts are added to those without"
    def __init__(self): super().__init__(l=nn.Linear(6,8), n=BN1(8))
    def forward(self, x):
        y = self.l(x)
        return torch.cat([self.n(o)+o for o in y.split(4)]).relu()

@trap(IM())
class NormOfHalf(B):
    "Instance-batch norm (IBN): the norm sees half of the channels"
    def __init__(self): super().__init__(c=Conv(), n=BN(3), i=nn.InstanceNorm2d(3, affine=True))
    def forward(self, x):
        a,b = self.c(x).split(3, 1)
        return torch.cat([self.i(a), self.n(b)], 1).relu()

@must(IM(), 1, kind='affine', layer_scale=True)
class ScaleOfModuleInFunction(B):
    "A LayerScale by hand before a residual"
    def __init__(self): super().__init__(c=Conv(3,3), g=Gamma(3,1,1))
    def forward(self, x): return x + self.g(self.c(x))

@trap(IM(), kind='affine')
class ScaleFromConfig(B):
    "A scale that grows with calls of the module: warm-up by a Python number"
    def __init__(self): super().__init__(c=Conv(), g=par(6,1,1), n=BN(6), calls=0)
    def forward(self, x):
        self.calls += 1
        return self.n(self.c(x)*self.g*self.calls).relu()

@trap(IM(), kind='affine')
class SoftGate(B):
    "A constant computed from parameters that channels compete for"
    def __init__(self): super().__init__(c=Conv(), a=par(6), n=BN(6))
    def forward(self, x): return self.n(self.c(x)*self.a.softmax(0)[:,None,None]), self.a.argmax()

@trap(((r(2,3,8,8),), [(r(1,3,8,8),), (r(2,3,9,8,by=3),), (r(2,3,8,8,at=2),)]), kind='affine')
class PReluAfter(B):
    "PReLU's weight is per channel, but no constant on the way"
    def __init__(self): super().__init__(c=Conv(), p=nn.PReLU(6), n=BN(6))
    def forward(self, x): return self.n(self.p(self.c(x)))

@trap(IM(), kind='affine')
class SnakeBetween(B):
    "Snake: x + sin(a x)^2/a"
    def __init__(self): super().__init__(c=Conv(), a=par(6,1,1), n=BN(6))
    def forward(self, x):
        y = self.c(x)
        return self.n(y + (self.a*y).sin()**2/self.a)

# ================================================================ more of 1, 2, 4
group('2')

class Skips(nn.BatchNorm2d):
    def forward(self, x):
        if x.shape[0]==1: return x
        return super().forward(x)

B1 = ((r(2,3,8,8),), [(r(1,3,8,8),), (r(3,3,9,8),), (r(1,3,8,8,at=3),)])
@trap(B1)
class NormSkipsBatchOf1(B):
    def __init__(self): super().__init__(c=Conv(), n=Skips(6))
    def forward(self, x): return self.n(self.c(x)).relu()

@trap(((r(1,3,8,8),), [(r(2,3,8,8),), (r(3,3,9,8),), (r(1,3,8,8,at=3),)]))
class NormSkipsBatchOf1Seen(NormSkipsBatchOf1):
    "The same from a batch of 1"

class SkipsSmallPixels(Frozen):
    def forward(self, x): return super().forward(x) if x.shape[-1]>1 else x

@trap(((r(2,3,8,8),), [(r(1,3,8,1),), (r(2,3,1,1),), (r(3,3,9,8),)]), kind='affine')
class FrozenSkips1x1(B):
    def __init__(self): super().__init__(c=Conv(), n=SkipsSmallPixels(6))
    def forward(self, x): return self.n(self.c(x)).relu()

class AnyDim(nn.BatchNorm1d):
    "speechbrain's: channels last, any number of axes"
    def forward(self, x):
        shape = x.shape
        if x.dim()==4: x = x.reshape(-1, shape[-1])
        elif x.dim()==3: x = x.transpose(-1,1)
        y = super().forward(x)
        return y.reshape(shape) if len(shape)==4 else y.transpose(1,-1) if len(shape)==3 else y

@maybe(((r(2,5,6),), [(r(1,4,6),), (r(3,6),), (r(2,3,4,6),)]), 1)
class NormOfAnyDim(B):
    def __init__(self): super().__init__(l=nn.Linear(6,8), n=AnyDim(8))
    def forward(self, x): return self.n(self.l(x)).relu()

class MaskedNorm(nn.BatchNorm1d):
    def forward(self, x, mask):
        y = x.clone()
        y[mask] = super().forward(x[mask])
        return y

@trap(((r(2,5,6),torch.tensor([[1,1,1,0,0],[1,1,1,1,1]]).bool()),
    [(r(1,5,6),torch.ones(1,5).bool()), (r(2,3,6,by=4),torch.tensor([[1,0,1]]*2).bool()),
    (r(2,5,6),torch.tensor([[1,1,0,0,0]]*2).bool())]))
class NormOfMasked(B):
    def __init__(self): super().__init__(l=nn.Linear(6,8), n=MaskedNorm(8))
    def forward(self, x, m): return self.n(self.l(x), m).relu()

@trap(((r(2,5,6),torch.ones(2,5).bool()),
    [(r(1,5,6),torch.ones(1,5).bool()), (r(2,3,6,by=4),torch.tensor([[1,0,1]]*2).bool()),
    (r(2,5,6),torch.tensor([[1,1,0,0,0]]*2).bool())]))
class NormOfMaskedAllSeen(NormOfMasked):
    "The mask of the example selects everything"

@trap(IM())
class NormAssignsHalf(B):
    def __init__(self): super().__init__(c=Conv(), n=BN(3))
    def forward(self, x):
        y = self.c(x).clone()
        y[:,:3] = self.n(y[:,:3])
        return y.relu()

class KeepDim(nn.Module):
    "Constants by reductions of buffers, keepdim"
    def __init__(self, n):
        super().__init__()
        self.register_buffer('samples', torch.zeros(5,n,1,1))
        self.weight,self.bias = par(1,n,1,1),par(1,n,1,1)
    def forward(self, x):
        m,v = self.samples.mean(0, keepdim=True),self.samples.var(0, keepdim=True)
        return (x-m)/(v+.1).sqrt()*self.weight + self.bias

@must(IM(), 4, kind='affine')
class ConstantsByKeepdim(B):
    def __init__(self): super().__init__(c=Conv(), n=KeepDim(6))
    def forward(self, x): return self.n(self.c(x)).relu()

class NormStack(nn.Module):
    "Two affine maps and a norm in one module of its own"
    def __init__(self, n):
        super().__init__()
        self.a,self.n,self.b = ScaleBias(n,1,1),nn.BatchNorm2d(n),MeanRstd(n,1,1)
    def forward(self, x): return self.b(self.n(self.a(x)))

@must(IM(), 5, kind='affine')
class AffinesInARow(B):
    def __init__(self): super().__init__(c=Conv(), n=NormStack(6))
    def forward(self, x): return self.n(self.c(x)).relu()

class Dyt(nn.Module):
    "Dynamic tanh is no norm"
    def __init__(self, n):
        super().__init__()
        self.alpha,self.weight,self.bias = par(1),par(n,1,1),par(n,1,1)
    def forward(self, x): return torch.tanh(self.alpha*x)*self.weight + self.bias

@trap(IM(), kind='affine')
class DynamicTanh(B):
    def __init__(self): super().__init__(c=Conv(), n=Dyt(6), d=Conv(6,4,p=0), m=BN(4))
    def forward(self, x): return self.m(self.d(self.n(self.c(x)))).relu()

@must(IM(), 2, kind='affine')
class AffineAfterTanhAhead(B):
    "An affine module after an activation goes ahead"
    def __init__(self): super().__init__(c=Conv(), t=nn.Tanh(), n=ScaleBias(6,1,1), d=Conv(6,4,p=0))
    def forward(self, x): return self.d(self.n(self.t(self.c(x)))).relu()

class Mixes(nn.Module):
    "A constant matrix over channels is linear, but no map per channel"
    def __init__(self, n):
        super().__init__()
        self.weight,self.bias = par(n,n),par(n,1,1)
    def forward(self, x): return torch.einsum('oc,bchw->bohw', self.weight, x) + self.bias

@trap(IM(), kind='affine')
class WhiteningModule(B):
    def __init__(self): super().__init__(c=Conv(), w=Mixes(6), n=BN(6))
    def forward(self, x): return self.n(self.w(self.c(x)).abs())

class AbsAffine(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.scale,self.bias = par(n,1,1),par(n,1,1)
    def forward(self, x): return x*self.scale + self.bias*x.sign().abs()

@trap(((r(2,3,8,8),), [(r(1,3,8,8),), (torch.zeros(2,3,8,8).double(),), (r(2,3,9,8,at=3),)]), kind='affine')
class ShiftVanishesAtZero(B):
    "Affine but where the input is exactly 0"
    def __init__(self): super().__init__(c=nn.Conv2d(3,6,1,bias=False), n=AbsAffine(6), d=Conv(6,4,p=0))
    def forward(self, x): return self.d(self.n(self.c(x).relu())).relu()

class ClampedScale(nn.Module):
    "Affine until the input is large"
    def __init__(self, n):
        super().__init__()
        self.scale,self.bias = par(n,1,1),par(n,1,1)
    def forward(self, x): return (x*self.scale + self.bias).clamp(-500, 500)

@trap(((r(2,3,8,8),), [(r(1,3,8,8),), (r(2,3,8,8,by=1e4),), (r(2,3,9,8,at=3),)]), kind='affine')
class AffineUntilLarge(B):
    def __init__(self): super().__init__(c=Conv(), n=ClampedScale(6))
    def forward(self, x): return self.n(self.c(x)).sigmoid()

group('4')

@maybe(((r(5,6),), [(r(3,6),), (r(8,6,by=4),), (r(1,6),)]), 1)
class NormUnbatchedLSTM(B):
    "Steps are items of the norm"
    def __init__(self): super().__init__(n=BN1(6), rnn=nn.LSTM(6,5))
    def forward(self, x): return self.rnn(self.n(x))[0]

@maybe(SEQ(8), 1)
class NormOfPartLSTM(B):
    "Only some of the features are normed"
    def __init__(self): super().__init__(n=BN1(5), rnn=nn.GRU(8,5,batch_first=True))
    def forward(self, x): return self.rnn(torch.cat([x[...,:3], norm_last(self.n, x[...,3:])], -1))[0]

@must(IDS(4,5), 1)
class EmbeddingNormLSTM(B):
    def __init__(self): super().__init__(e=nn.Embedding(10,6), n=BN1(6), rnn=nn.LSTM(6,5,batch_first=True))
    def forward(self, i): return self.rnn(norm_last(self.n, F.relu(self.e(i))))[0]

@trap(SEQ(6))
class LSTMInputReadToo(B):
    def __init__(self): super().__init__(n=BN1(6), rnn=nn.LSTM(6,6,batch_first=True))
    def forward(self, x):
        y = norm_last(self.n, x)
        return y + self.rnn(y)[0]

@trap(SEQ(6))
class TiedLayersLSTM(B):
    "The second layer has the first one's input weight"
    def __init__(self):
        super().__init__(n=BN1(6), rnn=nn.LSTM(6,6,2,batch_first=True))
        self.rnn.weight_ih_l1 = self.rnn.weight_ih_l0
    def forward(self, x): return self.rnn(norm_last(self.n, x))[0]

@trap(SEQ(6))
class TiedDirectionsLSTM(B):
    "Both directions share a bias"
    def __init__(self):
        super().__init__(n=BN1(6), rnn=nn.LSTM(6,6,batch_first=True,bidirectional=True))
        self.rnn.bias_ih_l0_reverse = self.rnn.bias_ih_l0
    def forward(self, x): return self.rnn(norm_last(self.n, x))[0]

@trap(SEQ(6))
class TwoBiasesAreOneLSTM(B):
    "bias_hh is bias_ih: in a GRU one of them stands inside of a gate"
    def __init__(self):
        super().__init__(n=BN1(6), rnn=nn.GRU(6,6,batch_first=True))
        self.rnn.bias_hh_l0 = self.rnn.bias_ih_l0
    def forward(self, x): return self.rnn(norm_last(self.n, x))[0]

group('1')

@must(((r(5,6),ids(2,9,n=5)), [(r(3,6),ids(2,4,n=3)), (r(8,6,by=5),ids(2,20,n=8)), (r(4,6),ids(2,7,n=4))]), 1)
class GraphSAGE(B):
    "lin_l(mean of neighbours) + lin_r(x)"
    def __init__(self): super().__init__(l=PygLinear(6,8), q=PygLinear(6,8,False), n=BN1(8))
    def forward(self, x, e):
        s = torch.zeros_like(x).index_add_(0, e[1], x[e[0]])
        k = torch.zeros(len(x), dtype=x.dtype).index_add_(0, e[1], torch.ones(e.shape[1], dtype=x.dtype)).clamp(min=1)
        return self.n(self.l(s/k[:,None]) + self.q(x)).relu()

@must(((r(2,3,20),), [(r(1,3,7),), (r(3,3,30,by=4),), (r(2,3,20,at=3),)]), 2)
class PointNet(B):
    def __init__(self): super().__init__(l=PygLinear(3,8), n=BN1(8), l2=PygLinear(8,8), n2=BN1(8), k=PygLinear(8,4))
    def forward(self, x):
        x = x.transpose(1,2).reshape(-1,3)
        x = self.n2(self.l2(self.n(self.l(x)).relu())).relu()
        return self.k(x.view(-1,8).max(0).values)

class SkipsSmall(nn.Conv2d):
    "Is the identity for single pixels"
    def forward(self, x): return super().forward(x) if x.shape[-1]>1 else x.repeat(1,2,1,1)

@trap(((r(2,3,8,8),), [(r(1,3,8,1),), (r(2,3,1,1),), (r(3,3,9,8),)]))
class ConvSkips1x1(B):
    def __init__(self): super().__init__(c=SkipsSmall(3,6,3,padding=1), n=BN(6))
    def forward(self, x): return self.n(self.c(x)).relu()

class NoisyLinear(nn.Module):
    "Rainbow's, in evaluation only the mean"
    def __init__(self, i, o):
        super().__init__()
        self.mu,self.sigma,self.bias = par(o,i),par(o,i),par(o)
        self.register_buffer('eps', torch.zeros(o,i))
    def forward(self, x):
        if self.training: return F.linear(x, self.mu + self.sigma*self.eps, self.bias)
        return F.linear(x, self.mu, self.bias)

@must(VEC(), 1)
class Noisy(B):
    def __init__(self): super().__init__(l=NoisyLinear(6,8), n=BN1(8))
    def forward(self, x): return self.n(self.l(x)).relu()

@trap(((r(4,6),False), [(r(1,6),True), (r(5,6),False), (r(3,6),True)]))
class TransposedByFlag(B):
    "An autoencoder with tied weights: one way or the other"
    def __init__(self): super().__init__(w=par(6,6), b=par(6), n=BN1(6))
    def forward(self, x, back): return self.n(F.linear(x, self.w.t() if back else self.w, self.b)).relu()

@trap(VEC())
class TiedAutoencoder(B):
    def __init__(self): super().__init__(w=par(4,6), b=par(4), c=par(6), n=BN1(4), m=BN1(6))
    def forward(self, x): return self.m(F.linear(self.n(F.linear(x, self.w, self.b)).relu(), self.w.t(), self.c))

@trap(IM())
class GradientReversed(B):
    "The weight through a custom function: computed"
    def __init__(self): super().__init__(w=par(6,3,3,3), b=par(6), n=BN(6))
    def forward(self, x): return self.n(F.conv2d(x, MemSwish.apply(self.w), self.b)).relu()

@trap(IM())
class MovedWeights(B):
    "A shift of the weights along the channels on each call"
    def __init__(self): super().__init__(k=torch.ones(6,3,3,3), b=par(6), n=BN(6))
    def forward(self, x):
        y = self.n(F.conv2d(x, self.k, self.b)).relu()
        self.k = self.k.roll(1, 0)
        return y

group('4')
@trap(IM())
class NormThenTwoPads(B):
    "One reader pads with reflection, the other with zeros"
    def __init__(self): super().__init__(n=BN(3), c=Conv(p=0), d=Conv(p=0))
    def forward(self, x):
        y = self.n(x)
        return self.c(F.pad(y,(1,1,1,1),mode='reflect')).relu() + self.d(F.pad(y,(1,1,1,1))).relu()

@must(IM(), 1)
class NormThenTwoGoodPads(B):
    def __init__(self): super().__init__(n=BN(3), c=Conv(p=0), d=Conv(p=0))
    def forward(self, x):
        y = self.n(x)
        return self.c(F.pad(y,(1,1,1,1),mode='reflect')).relu() + self.d(F.pad(y,(1,1,1,1),'circular')).relu()

@trap(((r(2,3,8,8),'reflect'), [(r(1,3,8,8),'constant'), (r(2,3,9,8),'circular'), (r(2,3,8,8),'constant')]))
class PadModeIsAnOption(B):
    def __init__(self): super().__init__(n=BN(3), c=Conv(p=0))
    def forward(self, x, mode): return self.c(F.pad(self.n(x),(1,1,1,1),mode=mode)).relu()

@trap(((r(2,3,8,8),0), [(r(1,3,8,8),1), (r(2,3,9,8),2), (r(2,3,8,8),-1)]))
class PadWidthIsAnOption(B):
    def __init__(self): super().__init__(n=BN(3), c=Conv(p=0))
    def forward(self, x, k): return self.c(F.pad(self.n(x),(k,k,0,0))).relu()

@must(IM(), 1)
class AsymmetricReflectInConv(B):
    "padding_mode of the convolution itself, in a subclass that only names itself"
    def __init__(self):
        class Named(nn.Conv2d): pass
        super().__init__(n=BN(3), c=Named(3,6,(3,5),padding=(1,2),padding_mode='reflect'))
    def forward(self, x): return self.c(self.n(x)).relu()

group('3')
@must(IM(), 1)
class TwoInPlace(B):
    def __init__(self): super().__init__(c=Conv(), w=par(6,1,1), b=par(6,1,1), n=BN(6))
    def forward(self, x):
        y = self.c(x)
        y *= self.w
        y += self.b
        return self.n(y).relu()

@must(IM(), 1)
class SumInPlace(B):
    def __init__(self): super().__init__(c=Conv(), d=Conv(), n=BN(6))
    def forward(self, x):
        y = self.c(x)
        y += self.d(x)
        return self.n(y).relu()

@trap(IM())
class InPlaceSeenByView(B):
    "A view made before shows what is written, too"
    def __init__(self): super().__init__(c=Conv(), b=par(6,1,1), n=BN(6))
    def forward(self, x):
        y = self.c(x)
        z = y.flatten(1)
        y += self.b
        return self.n(y).relu(), z

@trap(IM())
class InPlaceOnPart(B):
    def __init__(self): super().__init__(c=Conv(), b=par(3,1,1), n=BN(3))
    def forward(self, x):
        y = self.c(x)
        z = y[:,:3]
        z += self.b
        return self.n(z).relu(), y

@trap(IM(c=6))
class InPlaceOnInput(B):
    def __init__(self): super().__init__(c=Conv(6), b=par(6,1,1), n=BN(6))
    def forward(self, x):
        y = x.mul_(self.b)
        return self.n(y).relu() + self.c(x)

@trap(IM())
class InPlaceOnParameter(B):
    "Writes into a buffer, which is another one at the next call"
    def __init__(self):
        super().__init__(c=Conv(), n=BN(6))
        self.register_buffer('b', torch.ones(6,1,1))
    def forward(self, x):
        y = self.b.add_(self.c(x).mean((0,2,3), keepdim=True)[0])
        return self.n(y[None]).relu()

@trap(IM())
class InPlaceKept(B):
    def __init__(self): super().__init__(c=Conv(), b=par(6,1,1), n=BN(6))
    def forward(self, x):
        self.kept = y = self.c(x)
        y += self.b
        out = self.n(y).relu()
        return out + self.kept

@trap(IM())
class NormThenInPlace(B):
    "What the norm leaves untouched is written into once it is gone"
    def __init__(self): super().__init__(c=Conv(), d=Conv(6), b=par(6,1,1), n=BN(6))
    def forward(self, x):
        y = self.c(x)
        z = self.n(y)
        z += self.b
        return self.d(z).relu() + y
