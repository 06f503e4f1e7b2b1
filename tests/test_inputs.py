"""A fold made from an example has to be right on every input that the original takes: on other numbers of items, other
sizes, values and flags, in a second call, and in all that the model keeps aside"""
import functools, types, zlib
from collections import deque
from copy import deepcopy
import numpy as np, pytest, torch
from torch import nn, Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only
from fastfold import BN_Folder
from fastfold.core.refusals import FoldError
from input_nets import In, NETS

def live(case):
    "The model in float64 and evaluation, with random weights and statistics"
    torch.manual_seed(zlib.crc32(case.name.encode()))
    model = case.make().double().eval()
    with torch.no_grad():
        for p in model.parameters(): p.copy_(torch.randn_like(p)*(.5 if p.dim()<2 else p[0].numel()**-.5))
        for m in model.modules():
            if not isinstance(m, _BatchNorm): continue
            m.weight.copy_((torch.rand_like(m.weight)*1.5+.5)*torch.randn_like(m.weight).sign())
            m.weight[0],m.weight[-1] = -.8,1.3 # both signs in each norm
            nn.init.uniform_(m.bias, -2, 2)
            nn.init.uniform_(m.running_mean, -2, 2)
            nn.init.uniform_(m.running_var, .5, 2)
    return model

def own(o, kw=None):
    "An input of its own: clones in float64"
    o = o if isinstance(o, In) else In(o, kw or {})
    def clone(t):
        t = t.detach().clone(memory_format=torch.preserve_format).requires_grad_(t.requires_grad)
        return t.double() if t.is_floating_point() else t
    return In(*tree_map_only(Tensor, clone, (o.args, o.kw)))

def parts_of(o):
    "What an object that is no tensor holds"
    if isinstance(o, dict): return o.values()
    if isinstance(o, (list,tuple,set,deque)): return o
    if isinstance(o, functools.partial): return [*o.args, *o.keywords.values()]
    if isinstance(o, types.FunctionType): return [c.cell_contents for c in o.__closure__ or ()]
    if hasattr(o, '__dict__'): return vars(o).values()
    return [getattr(o, k) for k in getattr(o, '__slots__', ()) if hasattr(o, k)]

def tensors(o, seen=None):
    "All tensors and numbers in `o`, also those in plain objects"
    seen = set() if seen is None else seen
    if isinstance(o, Tensor): yield o.detach().clone()
    elif isinstance(o, np.ndarray): yield torch.as_tensor(o).clone()
    elif isinstance(o, (bool,int,float,complex,np.number)): yield torch.as_tensor(o)
    elif o is not None and not isinstance(o, (str,bytes,nn.Module,type,types.ModuleType)) and id(o) not in seen:
        seen.add(id(o))
        for p in parts_of(o): yield from tensors(p, seen)

def what(case, model, i):
    "Call `model` on an input, and return all that can be seen of it"
    out = model(*i.args, **i.kw)
    seen = list(tensors(out))
    return seen + (list(tensors(case.look(model, out))) if case.look else [])

def error(a, b):
    "Largest relative difference of two lists of tensors"
    if [t.shape for t in a]!=[t.shape for t in b]: return float('inf')
    worst = 0.
    for s,t in zip(a, b):
        if not s.numel(): continue
        s,t = (o.to(torch.complex128 if o.is_complex() else torch.float64) for o in (s, t))
        if not torch.equal(s.isnan(), t.isnan()): return float('inf')
        s,t = s.nan_to_num(),t.nan_to_num()
        worst = max(worst, ((s-t).abs().max()/s.abs().max().clamp(min=1e-12)).item())
    return worst

def check(case, model, folded, inputs):
    "Compare a few calls in a row, of fresh copies"
    model,folded = deepcopy(model),deepcopy(folded)
    for i in inputs:
        mine,its = own(In(i.args, i.kw)),own(In(i.args, i.kw))
        want,got = what(case, model, mine),what(case, folded, its)
        assert error(want, got)<1e-9, i
        before,mine,its = [list(tensors((o.args, o.kw))) for o in (i, mine, its)]
        assert error(before, mine)>0 or error(before, its)==0, 'writes into its input'

more_axes = {'axes.LinearNormGiven', 'axes.EmbeddingOfIds'} # that is what a fold relies on: see the page of questions

@pytest.mark.parametrize('verify', [False, True])
@pytest.mark.parametrize('case', NETS, ids=lambda o: o.name)
def test_other_inputs(case, verify):
    if case.name in more_axes: pytest.skip('other inputs have more axes than the example')
    model,folder = live(case),BN_Folder(verify=verify)
    before = deepcopy(model.state_dict())
    example = None if case.example is None else own(In(case.example, case.kw))
    others = [own(o) for o in case.others]
    given = own(example) if example else In()
    try: folded = folder.fold(model, *given.args, kw=given.kw or None)
    except FoldError:
        assert not case.must_fold
        return
    assert error(list(tensors(dict(before))), list(tensors(dict(model.state_dict()))))==0
    if case.must_fold: assert len(folder.report.kept)<=case.stays, folder.report
    shown = [example] if example else []
    for i in shown + others: check(case, model, folded, [i, i])
    check(case, model, folded, shown + others)
