"""Parameters that a forward multiplies channels with: found however they are written, taken out where a layer can do
it, and left where anything stands against it. In float64, to 1e-9, without verification unless it is what is tested"""
import pickle, subprocess, sys
from copy import deepcopy
import pytest, torch
from torch import nn
from fastfold.core import maps
from fastfold.merge import rewrite
from fastfold.core.rules import NormRule
from fastfold.core.refusals import FoldError
from fastfold.folder import BN_Folder
from random_nets import difference, live
from test_merge import Block, batch, check_same, conv, images, state, tensors

def gamma(*shape, seed=3):
    drawn = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.rand(*shape, generator=drawn, dtype=torch.float64)+.5)
def scaled(forward, **more):
    return nn.Sequential(Block(forward, **dict(conv=conv(), g=gamma(4, 1, 1)) | more), nn.Identity())

def fold(model, x, others=(), inplace=False, **options):
    """Fold `model`, made live, with its scales, see that it computes the same and that undo leaves every bit as it was;
    returns the report and the folded model"""
    live(model)
    xs,before,folder = [x, *others],state(model),BN_Folder(**dict(verify=False, layer_scale=True) | options)
    want = [tensors(model, o) for o in xs]
    plan = folder.plan(model, x)
    folded = folder.fold(model, x, inplace=inplace)
    assert plan==folder.report
    for o,w in zip(xs, want): assert difference(w, tensors(folded, o))<1e-9, str(folder.report)
    if inplace:
        result = deepcopy(folded)
        folder.unfold()
    else: result = folded
    check_same(before, state(model))
    return folder.report,result

def folds(model, x, n=1, **kwargs):
    "`fold`, where exactly `n` scales and norms go; nothing of them is left in the parameters"
    rep,folded = fold(model, x, **kwargs)
    assert len(rep.folded)==n, str(rep)
    left = dict(folded.named_parameters())
    assert not any(r.name in left for r in rep.folded), rep
    return folded

def keeps(model, x, why='', **kwargs):
    "`fold`, where nothing goes; `why` is part of the first reason, or nothing is reported if there is none"
    rep,folded = fold(model, x, **kwargs)
    assert not rep.folded and (why in rep.kept[0].reason if why else not rep.rows), f'{rep} {rep.rows}'
    assert folded.state_dict().keys()==model.state_dict().keys()

# how it may be written

@pytest.mark.parametrize('inplace', [False, True])
def test_written(inplace):
    ways = [lambda m,x: m.g*m.conv(x), lambda m,x: m.conv(x)*m.g, lambda m,x: m.conv(x).mul(m.g),
        lambda m,x: torch.mul(m.g, m.conv(x)), lambda m,x: torch.multiply(m.conv(x), other=m.g),
        lambda m,x: (m.g*m.conv(x)).relu() + x[:,:,1:-1,1:-1]]
    for f in ways: folds(scaled(f), images, inplace=inplace, others=[batch(1, 4, 5, 7)])

def test_shapes():
    flat = [lambda m,x: m.conv(x).mul(m.g.reshape(1, -1, 1, 1)), lambda m,x: m.g[:,None,None]*m.conv(x),
        lambda m,x: m.conv(x)*m.g.view(-1, 1, 1), lambda m,x: m.conv(x)*m.g.unsqueeze(1).unsqueeze(2)[None],
        lambda m,x: (m.conv(x).permute(0, 2, 3, 1)*m.g).permute(0, 3, 1, 2)]
    for f in flat: folds(scaled(f, g=gamma(4)), images)
    folds(scaled(lambda m,x: m.conv(x)*m.g, g=gamma(1, 4, 1, 1)), images)
    folds(scaled(lambda m,x: m.conv(x)*m.g, conv=nn.Linear(4, 3), g=gamma(3)), batch(2, 5, 4))
    folds(scaled(lambda m,x: m.conv(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)*m.g, conv=nn.Linear(4, 4)), images)

def test_both_ways():
    folds(scaled(lambda m,x: m.conv(x.relu()*m.g)), images) # into the layer after it
    folds(scaled(lambda m,x: m.bn(m.g*m.conv(x)), bn=nn.BatchNorm2d(4)), images, n=2)
    folds(scaled(lambda m,x: m.g*m.bn(m.conv(x)), bn=nn.BatchNorm2d(4)), images, n=2)
    folds(scaled(lambda m,x: m.h*m.conv(x) + m.g*m.two(x), h=gamma(4, 1, 1, seed=4), two=conv()), images, n=2)
    inner = scaled(lambda m,x: (m.g*m.conv(x)).relu())[0]
    folds(nn.Sequential(scaled(lambda m,x: m.g*m.inner(x), inner=inner)[0]), images, n=1)

def test_nested():
    inner = scaled(lambda m,x: m.g*m.conv(x))[0]
    def f(m, x): return m.inner(x).relu() + m.g*m.conv(x)
    block = Block(f, inner=inner, conv=conv(), g=gamma(4, 1, 1, seed=4))
    folds(nn.Sequential(block), images, n=2, inplace=True)

def test_registered_twice():
    model = scaled(lambda m,x: m.g*m.conv(x))
    model.also = model[0]
    folded = folds(Block(lambda m,x: m.net[0](x), net=model), images, inplace=True)
    assert folded.net[0] is folded.net.also

def test_odd_numbers():
    "Zeros and negative numbers are fine; what is not finite stays"
    def f(m, x): return m.g*m.conv(x)
    odd = nn.Parameter(torch.tensor([0., -1, 2, 1e-300], dtype=torch.float64).view(4, 1, 1))
    folds(scaled(f, g=odd), images)
    nans = nn.Parameter(torch.full((4, 1, 1), torch.nan))
    kept = BN_Folder(affine=True).plan(live(scaled(f, g=nans)), images).kept
    assert [(o.name, o.why.key) for o in kept]==[('0.g', 'not_finite')]

def test_off_by_default(): keeps(scaled(lambda m,x: m.g*m.conv(x)), images, layer_scale=False)

# what must be left

def test_no_scale():
    "Not one number per channel, or not a parameter"
    keeps(scaled(lambda m,x: m.g*m.conv(x), g=gamma(4, 5, 1)), images)
    keeps(scaled(lambda m,x: m.g*m.conv(x).sum((0, 2, 3))), images) # makes another shape
    keeps(scaled(lambda m,x: m.conv(x).mul_(m.g)), images)
    keeps(scaled(lambda m,x: torch.addcdiv(m.g, m.g, m.conv(x).abs()+1)), images) # it is divided by

def test_made_of_constants():
    "One number for all channels, and what a forward makes of parameters and buffers"
    folds(scaled(lambda m,x: m.g*m.conv(x), g=gamma(1)), images)
    folds(scaled(lambda m,x: m.g.relu()*m.conv(x)), images)
    folds(scaled(lambda m,x: m.g*m.h*m.conv(x), h=gamma(4, 1, 1)), images)
    folds(scaled(lambda m,x: m.g*m.conv(x) + m.g.sum()), images)
    model = scaled(lambda m,x: m.conv(x))
    model[0].register_buffer('b', gamma(4, 1, 1).data)
    model[0].function = lambda m,x: m.b*m.conv(x)
    del model[0].g
    folds(model, images)

def test_no_home():
    keeps(scaled(lambda m,x: m.g*m.conv(x), g=gamma(1, 4)), batch(2, 4, 7, 6), why='also read') # other sizes broadcast
    keeps(scaled(lambda m,x: (m.g*m.conv(x).relu()).relu()), images, why='relu')
    keeps(scaled(lambda m,x: m.g*x), images, why='input of the model')
    keeps(scaled(lambda m,x: (lambda y: m.g*y + y)(m.conv(x))), images, why='also used')

def test_other_uses():
    def views(m, x):
        v = m.g.view(4, 1, 1)
        return (v*m.conv(x)).relu() + v.mean()
    keeps(scaled(views), images, why='also read')
    def returned(m, x):
        v = m.g.view(4, 1, 1)
        return v*m.conv(x),v
    keeps(scaled(returned), images, why='the model returns it')
    def across(m, x): return m.g*m.conv(x) + m.g.view(1, 1, 4)*m.conv(x) # along another axis
    keeps(scaled(across), batch(2, 4, 7, 6))
    def shared():
        model = nn.Sequential(*[scaled(lambda m,x: m.g*m.conv(x))[0] for _ in range(2)])
        model[1].g = model[0].g
        return model
    keeps(shared(), batch(2, 4, 8, 8), why='used 2 times')
    twice = scaled(lambda m,x: m.g*m.conv(x))
    keeps(nn.Sequential(twice, twice), batch(2, 4, 8, 8), why='used 2 times')

def test_forwards_that_stay():
    folder = BN_Folder(layer_scale=True, verify=False)
    folder.fold(live(scaled(lambda m,x: m.g*m.conv(x))[0]), images, inplace=True)
    assert "the model's own forward" in folder.report.kept[0].reason
    hooked = scaled(lambda m,x: m.g*m.conv(x))
    hooked[0].register_forward_hook(lambda m,i,o: None)
    keeps(hooked, images, why='hook')
    keeps(scaled(lambda m,x: m.g*m.conv(x) if x.mean()>-100 else x), images, why="torch.fx can't trace '0'")
    def stores(m, x):
        m.seen = x
        return m.g*m.conv(x)
    keeps(scaled(stores), images, why="'0'")

def test_own_forward_of_the_model():
    "A copy can have another forward"
    folds(scaled(lambda m,x: m.g*m.conv(x))[0], images)

def test_one_of_two():
    "A scale that stays does not keep another one of the same forward from going"
    model = scaled(lambda m,x: m.g*m.conv(x) + (m.h*m.two(x).relu()).relu(), h=gamma(4, 1, 1), two=conv())
    rep,folded = fold(model, images)
    assert [r.name for r in rep.folded]==['0.g'] and [r.name for r in rep.kept]==['0.h']
    assert 'h' in dict(folded[0].named_parameters()) and 'g' not in dict(folded[0].named_parameters())

# what comes back

def test_verified():
    model = scaled(lambda m,x: m.bn(m.conv(x)).relu() + m.g*m.two(x), bn=nn.BatchNorm2d(4), two=conv())
    for dtype in (torch.float64, torch.float32):
        folder = BN_Folder(layer_scale=True)
        folder.fold(live(deepcopy(model), dtype), images.to(dtype))
        assert len(folder.report.folded)==2 and folder.report.max_err<1e-5

def test_a_lie_is_caught(monkeypatch):
    "A wrong number is found by verification, and the scale stays"
    model = live(scaled(lambda m,x: m.g*m.conv(x)))
    rule = maps.SCALES[maps.FactorNorm]
    wrong = lambda m,name: rule.affine(m, name)._replace(scale=rule.affine(m, name).scale*1.01)
    monkeypatch.setitem(maps.SCALES, maps.FactorNorm, NormRule(wrong, axis=rule.axis))
    folder = BN_Folder(layer_scale=True)
    with pytest.warns(UserWarning, match="'0.g' is kept: folding it changed the output"):
        folded = folder.fold(model, images)
    assert torch.equal(folded(images), model(images)) and type(folded[0]) is Block

def test_failure_leaves_no_trace(monkeypatch):
    def fails(*args): raise RuntimeError('no luck')
    model = live(scaled(lambda m,x: m.bn(m.g*m.conv(x)), bn=nn.BatchNorm2d(4)))
    before = state(model)
    monkeypatch.setattr(rewrite, 'rewritten', fails)
    with pytest.raises(RuntimeError, match='no luck'): BN_Folder(layer_scale=True).fold(model, images, inplace=True)
    check_same(before, state(model))

def test_undo_after_moving():
    model = live(scaled(lambda m,x: m.g*m.conv(x) + x[:,:,1:-1,1:-1], g=gamma(4, 1, 1)), torch.float32).float()
    folder = BN_Folder(layer_scale=True, verify=False)
    folder.fold(model, images.float(), inplace=True)
    model.to(torch.bfloat16)
    folder.unfold()
    assert {p.dtype for p in model.parameters()}=={torch.bfloat16}
    model(images.bfloat16())

def test_without_fastfold(tmp_path):
    folded = folds(nn.Sequential(scaled_block().double()), images, n=1)
    torch.save(folded, tmp_path/'m.pt')
    torch.save((images, folded(images)), tmp_path/'xy.pt')
    code = f"""import sys; sys.modules['fastfold'] = None
import torch
sys.path.insert(0, {str(tmp_path)!r})
m = torch.load({str(tmp_path/'m.pt')!r}, weights_only=False)
x,y = torch.load({str(tmp_path/'xy.pt')!r})
assert torch.equal(m(x), y)"""
    subprocess.run([sys.executable, '-c', code], check=True)
    assert torch.equal(pickle.loads(pickle.dumps(folded))(images), folded(images))
    assert torch.equal(deepcopy(folded)(images), folded(images))

def scaled_block():
    cn = pytest.importorskip('torchvision.models.convnext')
    block = cn.CNBlock(4, 1e-2, .1)
    nn.init.normal_(block.layer_scale)
    return block

def test_with_merge():
    def f(m, x): return (m.g*m.conv(x) + m.two(x)).relu()
    model = nn.Sequential(Block(f, conv=conv(padding=1), two=conv(k=1), g=gamma(4, 1, 1)))
    rep,folded = fold(model, images, merge=True)
    assert len(rep.folded)==1 and len(rep.merged)==1

# real ones

def random_scales(model):
    "`model` with every parameter and statistic random"
    g = torch.Generator().manual_seed(0)
    for p in model.parameters():
        if p.ndim<4: p.data = torch.randn(p.shape, generator=g)*.2+.3
    return live(model)

def test_torchvision_convnext():
    models = pytest.importorskip('torchvision.models')
    model = random_scales(models.convnext_tiny(num_classes=10))
    folded = folds(model, batch(1, 3, 64, 64), n=18, others=[batch(2, 3, 96, 64)])
    assert not any('layer_scale' in n for n,_ in folded.named_parameters())

@pytest.mark.parametrize('name,n,kept', [
    ('convnext_atto', 12, 0), ('convnext_atto_ols', 12, 0), ('edgenext_xx_small', 15, 3), ('cait_xxs24_224', 52, 0),
    ('inception_next_atto', 12, 0), ('xcit_nano_12_p16_224', 38, 14), ('rdnet_tiny', 6, 15)])
def test_timm(name, n, kept):
    timm = pytest.importorskip('timm')
    model = random_scales(timm.create_model(name, num_classes=4))
    rep,folded = fold(model, batch(1, 3, 224, 224))
    scales = [r for r in rep.rows if r.kind=='LayerScale']
    assert (sum(not r.reason for r in scales), sum(bool(r.reason) for r in scales))==(n, kept)

def test_load():
    "Weights of a model with another forward don't fit into a fresh one; the error says what to do"
    model = scaled(lambda m,x: m.g*m.conv(x))
    rep,folded = fold(model, images)
    with pytest.raises(FoldError, match=r'\(0.g\): make the model as .*save and load the whole model'):
        BN_Folder(layer_scale=True).load(model, folded.state_dict())
    with pytest.raises(FoldError, match="Sequential is on the meta device, .*: give it memory"):
        BN_Folder().load(nn.Sequential(nn.Linear(2, 2)).to('meta'), {})
