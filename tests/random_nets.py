"Random networks: whatever can stand beside a norm, in an order that nobody would think of. Run this file with a number to try that many"
import random, sys
from copy import deepcopy
from math import gcd
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from hypothesis import strategies as st
from fastfold.folder import BN_Folder

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

def outputs(model, *xb):
    "The tensors that `model` makes of `xb`, which it may write into"
    with torch.no_grad(): return list(model(*deepcopy(xb)))

def difference(want, got):
    "The largest difference, relative to the largest value"
    return max(((a-b).abs().max()/a.abs().max().clamp(min=1)).item() for a,b in zip(want, got, strict=True))

class RandomNet(nn.Module):
    "Runs its steps one after the other: each takes some of the values so far and makes one more"
    def __init__(self):
        super().__init__()
        self.layers,self.steps,self.outs,self.text = nn.ModuleList(),[],[0],[]
    def forward(self, x):
        vals = [x]
        for f,ins in self.steps: vals.append(f(self, *(vals[i] for i in ins)))
        return [vals[i].clone() for i in self.outs]
    def __repr__(self): return '\n'.join(['', *self.text, f'return {self.outs}', *map(str, self.layers)])

def rescale(m, args, out): return out*2
def store(m, args, out): m.seen = out
def write(m, args, out): out.mul_(2)

# what happens to values without a layer; all can be called with any batch size
one = {
    'relu': torch.relu, 'relu_': torch.relu_, 'mul': lambda v: v*2, 'mul_': lambda v: v.mul_(2), 'data.mul_': lambda v: (v.data.mul_(2), v)[1],
    'setitem': lambda v: (v.__setitem__((slice(None), 0), 1.), v)[1], 'detach': torch.detach, 'alias': lambda v: v[:], 'clone': torch.clone,
    'contiguous': lambda v: v.contiguous(),
    'flatten': lambda v: v.flatten(1), 'flatten2': lambda v: v.flatten(2), 'reshape': lambda v: v.reshape(len(v), v.shape[1], -1),
    'halves': lambda v: v.reshape(len(v), 2, -1),
    'rows': lambda v: v.reshape(-1, v.shape[-1]).reshape(v.shape), 'transpose': lambda v: v.transpose(1, -1), 'transpose_': lambda v: v.transpose_(1, -1),
    'half': lambda v: v.chunk(2, 1)[0], 'mean': lambda v: v.mean(-1),
    'numpy': lambda v: (v.numpy().__imul__(2), v)[1], 'parameter': lambda v: nn.Parameter(v, False), 'ask': lambda v: (v.size(), len(v), v.stride(), v)[-1],
    'peek': lambda v: v*(1+(v.sum()>0)),
}
two = {'add': torch.add, 'sub': torch.sub, 'add_': lambda v,w: v.add_(w), 'cat': lambda v,w: torch.cat([v,w], 1), 'add mean': lambda v,w: v+w.mean(),
    'out': lambda v,w: torch.add(v, w, out=v), 'copy_': lambda v,w: v.copy_(w)}

def new_layer(choose, v):
    "A layer that takes `v`"
    c,n,out = v.shape[1],v.ndim-2,choose([2, 4, 6])
    kind = choose(['norm']*6 + ['conv']*5 + ['transposed', 'linear', 'drop', 'drop_', 'relu_', 'identity', 'avg', 'max', 'flatten'])
    groups = choose([1, 1, gcd(c, out)])
    if kind=='norm': return {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[n](c, affine=choose([True, True, False]), eps=choose([1e-5, .1]))
    if kind=='linear' or n==0 and kind in ('conv', 'transposed'): return nn.Linear(v.shape[-1], choose([out, v.shape[-1]]), bias=choose([True, False]))
    if kind=='transposed': return {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}[n](c, out, choose([1, 2]), groups=groups, bias=choose([True, False]))
    if kind=='conv': return {1: nn.Conv1d, 2: nn.Conv2d}[n](c, out, choose([1, 1, 3]), padding=choose([0, 0, 1, 'same']), groups=groups,
        bias=choose([True, False]),
        padding_mode=choose(['zeros', 'zeros', 'reflect', 'circular']))
    return dict(drop=nn.Dropout(), drop_=nn.Dropout(inplace=True), relu_=nn.ReLU(True), identity=nn.Identity(),
        avg=nn.AdaptiveAvgPool1d(2) if n<2 else nn.AvgPool2d(2, 1),
        max=nn.MaxPool1d(1) if n<2 else nn.MaxPool2d(2, 1), flatten=nn.Flatten())[kind]

def new_step(choose, net, vals):
    "One more step of `net`, or a change to one of its layers: what to call it, the function, and the values it takes"
    i,j = (choose([len(vals)-1]*12 + [*range(len(vals))]) for _ in range(2))
    kind = choose(['layer']*16 + ['again', 'again', 'one', 'one', 'two', 'read', 'tie', 'hook', 'freeze'])
    if kind=='layer': net.layers.append(live(new_layer(choose, vals[i]), seed=len(net.layers)))
    elif not len(net.layers) and kind not in ('one', 'two'): return None
    k = len(net.layers)-1 if kind=='layer' else choose([*range(len(net.layers))]) if len(net.layers) else 0
    if kind in ('layer', 'again'): return f'layer {k}',lambda net,v: net.layers[k](v),[i]
    if kind in ('one', 'two'):
        fs = one if kind=='one' else two
        name = choose([*fs])
        return name,lambda net,*vs: fs[name](*vs),[i] if kind=='one' else [i,j]
    if kind=='read': return f'read weight {k}',lambda net,v: v + (next(net.layers[k].parameters(), v).sum()),[i]
    if kind=='hook':
        h = choose([rescale, store, write])
        net.layers[k].register_forward_hook(h)
        net.text.append(f'hook {h.__name__} on layer {k}')
    if kind=='freeze': net.layers[k].requires_grad_(False)
    if kind=='tie':
        a,b = net.layers[k],choose([*net.layers])
        if getattr(a, 'weight', None) is not None and getattr(b, 'weight', None) is not None and a.weight.shape==b.weight.shape:
            b.weight = a.weight
            net.text.append(f'tie {k} and {[*net.layers].index(b)}')

def batches():
    g = torch.Generator().manual_seed(1)
    return [torch.randn(n, 4, 6, 6, generator=g, dtype=torch.float64) for n in (2, 3, 1)]

@torch.no_grad()
def random_net(
    choose, # Function that picks one item of a list
    size=12 # Most steps
):
    "A random network for images of 4 channels and 6 by 6 pixels, in batches of any size"
    net,runs = RandomNet().eval(),[[x] for x in batches()]
    for _ in range(choose([*range(3, size+1)])):
        step = new_step(choose, net, runs[0])
        if step is None: continue
        name,f,ins = step
        try: new = [f(net, *(vals[i] for i in ins)) for vals in runs]
        except (RuntimeError, ValueError, TypeError, IndexError): continue # does not fit
        if not 2<=new[0].ndim<=4 or not 0<new[0].numel()<2000 or [len(v) for v in new]!=[2, 3, 1]: continue
        net.text.append(f'{len(runs[0])} = {name} of {ins}')
        net.steps.append((f, ins))
        for vals,v in zip(runs, new): vals.append(v)
    last = len(runs[0])-1
    net.outs = [last, choose([last]*2 + [*range(last)])]
    return net

@st.composite
def nets(draw): return random_net(lambda options: draw(st.sampled_from(options)))

def check(net):
    "Folding `net` changes nothing of what it computes, does what the plan said, and can be undone; returns the report"
    xs,folder = batches(),BN_Folder(verify=False)
    flags = [m.training for m in net.modules()]
    want = [outputs(net, x) for x in xs]
    plan = folder.plan(net, xs[0])
    folded = folder.fold(net, xs[0])
    assert plan==folder.report
    for x,w in zip(xs, want): assert difference(w, outputs(folded, x))<1e-9, str(folder.report)
    before = [*net.named_modules(), *net.named_parameters(remove_duplicate=False), *net.named_buffers()]
    bits = {k:v.clone() for k,v in net.state_dict().items()}
    folder.fold(net, xs[0], inplace=True)
    assert difference(want[0], outputs(net, xs[0]))<1e-9
    folder.unfold()
    after = [*net.named_modules(), *net.named_parameters(remove_duplicate=False), *net.named_buffers()]
    assert all(k==l and a is b for (k,a),(l,b) in zip(before, after, strict=True))
    assert all(torch.equal(v, bits[k]) for k,v in net.state_dict().items())
    assert [m.training for m in net.modules()]==flags
    return folder.report

if __name__=='__main__':
    torch.set_num_threads(1)
    n,first,folded,norms,failures = int(sys.argv[1]),int(sys.argv[2]) if len(sys.argv)>2 else 0,0,0,0
    for seed in range(first, first+n):
        net = random_net(random.Random(seed).choice, 16)
        try: rep = check(net)
        except Exception as e:
            failures += 1
            print(f'seed {seed}: {type(e).__name__} {e}', flush=True)
        else: folded,norms = folded+len(rep.folded),norms+len(rep.rows)
    print(f'{n} networks, {norms} norms, {folded} folded, {failures} failures')
