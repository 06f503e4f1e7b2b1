"""Norms and layers chosen by name: what a pattern means, what it leaves alone, and slips that must not pass. And shared
layers that are copied per use. In float64, to 1e-9, without verification"""
import pytest, torch
from torch import nn
from fastfold.cli import main
from fastfold.core.refusals import FoldError
from fastfold.folder import BN_Folder
from random_nets import difference, live
from test_merge import batch, Block, check_same, conv, images, normed, state, tensors

def fold(model, x=images, others=(), inplace=False, more=(), **options):
    "Fold `model`, made live, see that it computes the same and that undo leaves every bit; returns the report"
    live(model)
    xs,before,folder = [x, *more],state(model),BN_Folder(**dict(verify=False) | options)
    want = [tensors(model, o) for o in xs]
    plan = folder.plan(model, x, others=others)
    folded = folder.fold(model, x, others=others, inplace=inplace)
    assert plan==folder.report
    for o,w in zip(xs, want): assert difference(w, tensors(folded, o))<1e-9, str(folder.report)
    if inplace: folder.unfold()
    check_same(before, state(model))
    return folder.report

def went(report): return [o.name for o in report.folded]
def reasons(report): return {o.name:o.reason for o in report.kept}

def net():
    return nn.Sequential(normed(conv()), nn.ReLU(), normed(conv(k=1)), nn.ReLU(), normed(conv(), conv(k=1))).double()
all_norms = ['0.1', '2.1', '4.2']

# slips

@pytest.mark.parametrize('option', ['only', 'skip'])
@pytest.mark.parametrize('given', ['5', '*.bn', ['0', 'two'], '0.1.1', ['0.1.weigth']])
def test_nothing_named(option, given):
    with pytest.raises(FoldError, match=f"'{option}' has '.*', which names no norm.*such as "):
        BN_Folder(**{option: given}).fold(net(), images)

def test_closest():
    model = nn.ModuleDict(dict(backbone=net(), head=normed(conv()))).double()
    model.forward = lambda x: model['head'](model['backbone'](x))
    with pytest.raises(FoldError, match="'bakbone.*'.*'backbone'"): BN_Folder(only='bakbone.*').plan(model, images)
    with pytest.raises(FoldError, match="'haed.0'.*'head.0'"): BN_Folder(skip='haed.0').plan(model, images)

@pytest.mark.parametrize('option', ['only', 'skip'])
@pytest.mark.parametrize('given', [3, [3], '', ['0', ''], dict(a=1), nn.Conv2d, [nn.Conv2d]])
def test_no_patterns(option, given):
    with pytest.raises(FoldError, match=f"'{option}' is .*give a pattern"): BN_Folder(**{option: given})

def test_only_nothing():
    "An empty list chooses nothing, which nobody wants"
    with pytest.raises(FoldError, match="'only' is empty"): BN_Folder(only=[])
    assert went(fold(net(), skip=[]))==all_norms

def test_only_names_a_layer():
    "`only` is about norms: a layer, or a block without any, has none to choose"
    with pytest.raises(FoldError, match="'0.0', which names no norm"): BN_Folder(only='0.0').plan(net(), images)

def test_no_norms():
    with pytest.raises(FoldError, match='names no norm: give'): BN_Folder(only='0').plan(nn.Sequential(conv()), images)

# what is chosen

@pytest.mark.parametrize('inplace', [False, True])
@pytest.mark.parametrize('only,names', [('*', all_norms), ('0', ['0.1']), ('0.1', ['0.1']), ('*.2', ['4.2']),
    (['0.*','2'], ['0.1','2.1']), ('[02].1', ['0.1','2.1']), (('4.?','0'), ['0.1','4.2']), ('2*', ['2.1'])])
def test_only(only, names, inplace):
    report = fold(net(), only=only, inplace=inplace)
    assert went(report)==names
    assert set(reasons(report).values())<={'`only` leaves it out'}

@pytest.mark.parametrize('skip,names', [('*', []), ('0', ['2.1','4.2']), ('0.1', ['2.1','4.2']), ('*.2', ['0.1','2.1']),
    (['0','2'], ['4.2']), ('1', all_norms), ('4.0', all_norms)])
def test_skip(skip, names): assert went(fold(net(), skip=skip))==names

def test_skip_says(): assert reasons(fold(net(), skip=['0.1','2']))=={k:f"`skip` names '{k}'" for k in ('0.1', '2.1')}

def test_skipped_layer():
    "A layer that is skipped stays as it is; its norm may go the other way"
    report = fold(net(), skip=['0.0'])
    assert went(report)==['2.1', '4.2'] and reasons(report)['0.1'].startswith("`skip` names '0.0', and")
    both = nn.Sequential(conv(), nn.BatchNorm2d(4), conv())
    assert fold(both, skip='0').folded[0].into==['2'] and fold(both, skip='2').folded[0].into==['0']
    assert not went(fold(both, skip=['0','2']))

def test_similar_names():
    "layer1 isn't layer10, and a name counts from the start"
    model = nn.Sequential(*[normed(conv(4, 4, 1)) for _ in range(12)])
    assert went(fold(model, only='1'))==['1.1']
    assert len(went(fold(model, skip='1')))==11

def test_only_and_skip(): assert went(fold(net(), only=['0','2'], skip='2.0'))==['0.1']

def test_shared():
    "One module under two names is meant by both"
    one = normed(conv())
    model = Block(lambda m,x: m.b(m.a(x)), a=one, b=one)
    assert went(fold(model, only='b'))==['a.1'] and went(fold(model, only='a'))==['a.1']
    for name in 'a','b','b.0','a.1': assert not went(fold(model, skip=name)), name

def test_tied_to_skipped():
    "A parameter that a skipped layer has, too, doesn't change"
    a,b = conv(bias=False),conv(bias=False)
    b.weight = a.weight
    bn = nn.BatchNorm2d(4)
    model = Block(lambda m,x: m.bn(m.a(x)) + m.bn(m.b(x)), a=a, b=b, bn=bn)
    assert went(fold(model))==['bn']
    assert not went(fold(model, skip='b')) and not went(fold(model, skip='a'))

def test_one_norm_two_homes():
    "All layers that a norm goes into must be free"
    model = Block(lambda m,x: m.bn(m.a(x) + m.b(x)), a=conv(), b=conv(), bn=nn.BatchNorm2d(4))
    assert went(fold(model))==['bn'] and not went(fold(model, skip='b'))

def test_factors():
    "Parameters that a forward multiplies with have names, too"
    def made(): return nn.Sequential(Block(lambda m,x: m.g*m.bn(m.conv(x)), conv=conv(), bn=nn.BatchNorm2d(4),
        g=nn.Parameter(torch.rand(4, 1, 1)+.5)), nn.Identity())
    def names(**options): return went(fold(made(), layer_scale=True, **options))
    assert names()==['0.bn', '0.g'] and names(only='0.bn')==['0.bn'] and names(skip='*.g')==['0.bn']
    assert names(skip='0')==[]
    with pytest.raises(FoldError, match='names no norm'): names(only='0.conv')

def test_merge():
    "What isn't chosen isn't merged either"
    def made(): return nn.Sequential(Block(lambda m,x: m.a(x) + m.b(x), a=normed(conv(padding=1)), b=normed(conv(k=1))),
        nn.ReLU(), Block(lambda m,x: m.a(x) + m.b(x), a=normed(conv(padding=1)), b=normed(conv(k=1))))
    def places(**options): return [o.name for o in fold(made(), merge=True, **options).merged]
    assert places()==['0.conv_merged', '2.conv_merged'] or len(places())==2
    assert len(places(only='0'))==1 and len(places(skip='2.b.0'))==1 and len(places(skip=['0.a.1','2']))==0

def test_verified():
    "In the same way in float32, with comparison"
    model = live(net()).float()
    for options in dict(only='0'),dict(skip=['2','4.0']):
        folder = BN_Folder(**options)
        new = folder.fold(model, images.float())
        assert torch.allclose(new(images.float()), model(images.float()), atol=1e-4) and folder.report.max_err<1e-4

def test_loaded():
    "What was folded in part is loaded like any fold"
    model = live(net())
    new = BN_Folder(only=['0','4']).fold(model, images)
    again = BN_Folder().load(net().eval(), new.state_dict())
    assert torch.equal(again(images), new(images)) and isinstance(again[2][1], nn.BatchNorm2d)

def test_learner(tmp_path):
    "Learners, callbacks and the command line hand the options on"
    from fastfold.learner import FoldCallback
    from tiny_learner import learner
    learn = learner(tmp_path)
    names = went(learn.fold())
    assert went(learn.fold(only=names[0]))==names[:1] and went(learn.fold(skip=names[0]))==names[1:]
    with pytest.raises(FoldError, match='names no norm'): learn.fold(only='no such')
    FoldCallback(only=names[0])
    with pytest.raises(FoldError, match="'only' is 3"): FoldCallback(only=3)

def test_cli(tmp_path, capsys):
    layers = nn.Conv2d(3, 4, 3),nn.BatchNorm2d(4),nn.ReLU(),nn.Conv2d(4, 3, 3),nn.BatchNorm2d(3)
    torch.save(nn.Sequential(*layers).eval(), tmp_path/'model.pth')
    (tmp_path/'model.pth').chmod(0o600)
    file,out = str(tmp_path/'model.pth'),str(tmp_path/'out.pkl')
    assert main(['fold', file, '--out', out, '--only', '1', '--only', '7'])==1
    assert "'only' has '7'" in capsys.readouterr().err
    assert main(['fold', file, '--out', out, '--only', '1'])==0
    assert '1 of 2 norms folded' in capsys.readouterr().out
    assert main(['fold', '--force', '--skip', '[13]', '--skip', '4', file, '--out', out])==0
    assert '0 of 2 norms folded' in capsys.readouterr().out

def test_cli_unshare(tmp_path, capsys):
    one = nn.Conv2d(3, 3, 1)
    model = nn.Sequential(one, nn.BatchNorm2d(3), nn.ReLU(), one, nn.BatchNorm2d(3)).eval()
    torch.save(model, tmp_path/'model.pth')
    (tmp_path/'model.pth').chmod(0o600)
    assert main(['fold', str(tmp_path/'model.pth'), '--unshare'])==0
    assert '2 of 2 norms folded, 24 parameters' in capsys.readouterr().out

def test_input_norm():
    "The normalization of the data goes into no layer that is skipped; `only` is about the norms of the model"
    from fastfold.training.input_norm import InputNorm
    from fastfold.training.normalize import fold_norm, place_of
    norm = InputNorm(batch(4), batch(4).abs()+.1, -3)
    def into(**options): return place_of(fold_norm(BN_Folder(**options), norm, live(net()), [images], None, [0])).into
    assert into()==into(only='2')==into(skip='2')==['0.0']
    assert into(skip='0')==into(skip='*.0')==[]

# layers that are copied per use: what must not be

def levels(forward, n=3, k=3, inner=False, **more):
    "One convolution `m.conv`, and norms `m.bns`"
    bns = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(n)])
    block = Block(forward, conv=conv(k=k, padding=k//2), bns=bns, **more)
    return nn.Sequential(nn.Identity(), block) if inner else block

def unfolded(model, n=0, **options):
    "`fold`, where `n` norms go at most, and nothing is copied unless a norm goes into it"
    report = fold(model, unshare=True, **options)
    assert len(report.folded)<=n and bool(report.copies)==bool(report.copy_cost), str(report)
    return report

def asks_shape(m, x):
    y = m.conv(x)
    return m.bns[0](y)/y.shape[1] + m.bns[1](m.conv(-x))
def asks_type(m, x):
    y = m.conv(x)
    return m.bns[0](y).to(y.dtype) + m.bns[1](m.conv(-x))
def reads_between(m, x):
    y = m.conv(x)
    return m.bns[0](y) + y.mean() + m.bns[1](m.conv(-x))
def writes_input(m, x):
    x = x*1
    y = m.conv(x)
    x.mul_(2)
    return m.bns[0](y) + m.bns[1](m.conv(x))
def writes_between(m, x): return m.bns[0](m.conv(x).mul_(2.)) + m.bns[1](m.conv(-x))
def returns_it(m, x):
    y = m.conv(x)
    return m.bns[0](y), y, m.bns[1](m.conv(-x))
def without_norm(m, x): return m.bns[0](m.conv(x)) + m.bns[1](m.conv(-x)) + m.conv(2*x)
def shared_norm(m, x): return m.bns[0](m.conv(x)) + m.bns[1](m.conv(-x)) + m.bns[1](x)
def not_all_norms(m, x): return m.bns[0](m.conv(x)) + m.bns[1](m.conv(-x)) # and never the third
def by_value(m, x):
    y = m.conv(x)
    return m.bns[0](y) + m.bns[1](m.conv(-x)) if x.sum()>0 else y
def weight_elsewhere(m, x): return m.bns[0](m.conv(x)) + m.bns[1](m.conv(-x)) + m.conv.weight.sum()
def looks_at_layer(m, x): return m.bns[0](m.conv(x)) + m.bns[1](m.conv(-x))*m.conv.out_channels
def relu_between(m, x): return m.bns[0](m.conv(x).relu()) + m.bns[1](m.conv(-x).relu())

def by_size(m, x): return m.bns[0](m.conv(x)) + m.bns[1](m.conv(-x)) if x.shape[0]>1 else m.conv(x)
def other_source(m, x):
    if x.shape[0]==1: return m.bns[0](m.bns[2](x)) + m.bns[1](m.conv(-x))
    return m.bns[0](m.conv(x)) + m.bns[1](m.conv(-x)) + m.bns[2](x)

never = [by_size, other_source, asks_shape, asks_type, reads_between, writes_input, writes_between, returns_it,
    without_norm, shared_norm, not_all_norms, by_value, weight_elsewhere, looks_at_layer, relu_between]

@pytest.mark.parametrize('inplace', [False, True])
@pytest.mark.parametrize('forward', never)
def test_not_copied(forward, inplace):
    "A layer that is called through one name stays where anything but its norms sees what it makes"
    n = 3 if forward in (not_all_norms, other_source) else 2
    report = unfolded(levels(forward, n), inplace=inplace, more=[-images, batch(1, 4, 5, 5)])
    assert not report.copies

def test_not_copied_when_held():
    "A list that holds the layer would go on calling it, and its copies would do the same again"
    model = levels(lambda m,x: m.bns[0](m.steps[0](x)) + m.bns[1](m.conv(-x)), 2)
    model.steps = [model.conv]
    for inplace in False,True: assert not unfolded(model, inplace=inplace).copies

def test_not_copied_when_one_norm_is_in_doubt():
    "One of two blocks may leave out its norm for other values"
    class Doubts(nn.Module):
        def __init__(self, conv):
            super().__init__()
            self.conv,self.bn = conv,nn.BatchNorm2d(4)
        def forward(self, x):
            y = self.conv(x)
            return self.bn(y) if x.mean()>-1 else y
    one = conv(padding=1)
    model = Block(lambda m,x: m.part(x) + m.bn(m.part.conv(-x)), part=Doubts(one), bn=nn.BatchNorm2d(4))
    assert not unfolded(model, more=[images-9]).copies

def test_not_copied_before_factors():
    "What a forward multiplies with has no place of its own to put a layer into"
    def gamma(): return nn.Parameter(torch.rand(4, 1, 1))
    block = Block(lambda m,x: m.g*m.conv(x) + m.h*m.conv(-x), conv=conv(), g=gamma(), h=gamma())
    model = nn.Sequential(block, nn.Identity())
    assert not unfolded(model, layer_scale=True).copies

@pytest.mark.parametrize('which', ['conv', 'bn', 'forward', 'own'])
def test_not_copied_when_hooked(which):
    def double(m, args, out): return out*2
    model = levels(lambda m,x: m.bns[0](m.conv(x)) + m.bns[1](m.conv(-x)), 2)
    if which=='conv': model.conv.register_forward_hook(double)
    if which=='bn': model.bns[1].register_forward_hook(double)
    if which=='forward': model.conv.forward = lambda x: nn.Conv2d.forward(model.conv, x)*2
    if which=='own':
        class Own(nn.Conv2d):
            def forward(self, x): return super().forward(x)*2
        model.conv = Own(4, 4, 3, padding=1)
    if which=='forward': return # it would be of another model in a copy
    assert not unfolded(model).copies

def test_tied_on_purpose():
    "A parameter of two layers stays one, though the layer of one of them is shared"
    lin = nn.Linear(4, 4, bias=False)
    model = Block(lambda m,x: m.head(m.a(m.lin(x)) + m.b(m.lin(-x))), lin=lin, head=nn.Linear(4, 4, bias=False),
        a=nn.BatchNorm1d(4), b=nn.BatchNorm1d(4))
    model.head.weight = lin.weight
    assert not unfolded(model, x=batch(3, 4)).copies
    model.head = nn.Linear(4, 4)
    assert len(fold(model, batch(3, 4), unshare=True).folded)==2

def test_not_needed():
    "Where all uses agree, or a norm can go another way, nothing is copied"
    one = nn.BatchNorm2d(4)
    model = Block(lambda m,x: m.bn(m.conv(x)) + m.bn(m.conv(-x)), conv=conv(), bn=one)
    report = fold(model, unshare=True)
    assert went(report)==['bn'] and not report.copies
    model = Block(lambda m,x: m.a(m.bn(m.conv(x))) + m.conv(-x), conv=conv(k=1), bn=nn.BatchNorm2d(4), a=conv(k=1))
    report = fold(model, unshare=True)
    assert went(report)==['bn'] and report.folded[0].into==['a'] and not report.copies

def test_skipped_not_copied():
    for options in dict(skip='conv'),dict(only='bns.5'):
        model = levels(lambda m,x: [bn(m.conv(x)) for bn in m.bns], 6)
        report = unfolded(model, **options)
        assert not report.copies

# and what may

def per_level(m, x): return [bn(m.conv(x)).relu() for bn in m.bns]
def wrapped(m, x): return [bn(m.body(x)) for bn in m.bns]
def with_calls(m, x): return [bn(m.conv(o)) for bn,o in zip(m.bns, (x, -x, x[:,:,::2]))]
def twice_a_norm(m, x): return [bn(m.conv(o)) for bn in m.bns for o in (x, -x)]
def assigned(m, x):
    res = []
    for bn in m.bns:
        y = m.conv(x)
        y = bn(y)
        res.append(y*x.shape[2])
    return res

@pytest.mark.parametrize('inplace', [False, True])
@pytest.mark.parametrize('forward', [per_level, with_calls, twice_a_norm, assigned])
@pytest.mark.parametrize('inner', [False, True])
def test_copied_in_a_loop(forward, inplace, inner):
    model = levels(forward, inner=inner)
    n_params = sum(p.numel() for p in model.conv.parameters()) if not inner else 148
    report = fold(model, unshare=True, inplace=inplace, more=[batch(1, 4, 5, 6), -images])
    at = '1.' if inner else ''
    assert went(report)==[f'{at}bns.{i}' for i in range(3)] and not report.kept
    assert report.copies==[f'{at}bns.{i}.layer' for i in range(3)] and report.copy_cost==2*n_params
    assert f'{2*n_params} of them for copies' in str(report)
    assert not went(fold(model))

def test_default_says():
    "Without being asked, nothing is copied, and the reason says what could be done"
    report = fold(levels(per_level))
    assert not report.copies and len(report.kept)==3
    assert all('unshare=True' in o.todo and "'conv' is called 3 times" in o.reason for o in report.kept)

def test_one_by_one_shape():
    "A convolution may have other channels and sizes, too, if nobody asks"
    model = Block(lambda m,x: [bn(m.conv(x)) for bn in m.bns], conv=nn.Conv2d(4, 7, 3, stride=2, bias=False),
        bns=nn.ModuleList([nn.BatchNorm2d(7) for _ in range(2)]))
    report = fold(model, unshare=True)
    assert len(report.folded)==2 and report.copy_cost==4*7*9

class SepHead(nn.Module):
    "As EfficientDet's: separable convolutions shared by all levels, each with a norm per level"
    def __init__(self, n=3, depth=2):
        super().__init__()
        self.convs = nn.ModuleList([nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
            nn.Conv2d(4, 4, 1)) for _ in range(depth)])
        self.norms = nn.ModuleList([nn.ModuleList([nn.BatchNorm2d(4) for _ in range(n)]) for _ in range(depth)])
        self.predict = nn.Conv2d(4, 6, 3, padding=1)
    def forward(self, x):
        res = []
        for level in range(len(self.norms[0])):
            y = x[...,:7-level]
            for c,norms in zip(self.convs, self.norms): y = nn.functional.silu(norms[level](c(y)))
            res.append(self.predict(y))
        return res

class SepBNHead(nn.Module):
    "As RTMDet's: each level has blocks of its own, which hold the same convolutions"
    def __init__(self, n=3, depth=2):
        super().__init__()
        def block(): return nn.ModuleDict(dict(conv=nn.Conv2d(4, 4, 3, padding=1, bias=False), bn=nn.BatchNorm2d(4)))
        self.levels = nn.ModuleList([nn.ModuleList([block() for _ in range(depth)]) for _ in range(n)])
        self.predict = nn.ModuleList([nn.Conv2d(4, 6, 1) for _ in range(n)])
        for level in self.levels:
            for i,o in enumerate(level): o['conv'] = self.levels[0][i]['conv']
    def forward(self, x):
        res = []
        for i,level in enumerate(self.levels):
            y = x[...,:7-i]
            for o in level: y = o['bn'](o['conv'](y)).relu()
            res.append(self.predict[i](y))
        return res

@pytest.mark.parametrize('kind', [SepHead, SepBNHead])
@pytest.mark.parametrize('inplace', [False, True])
def test_heads(kind, inplace):
    model = kind()
    assert not went(fold(model, more=[batch(1, 4, 9, 9)]))
    report = fold(model, unshare=True, inplace=inplace, more=[batch(1, 4, 9, 9)])
    assert len(report.folded)==6 and not report.kept and len(report.copies)==6

def rt(): return live(SepBNHead())

def test_place_without_norm():
    "A place that no norm is folded in goes on with the original; one of another mode, which is never run, too"
    one = conv(padding=1)
    model = Block(lambda m,x: m.a(x) + m.b(x) + m.c.conv(x), a=nn.Sequential(one, nn.BatchNorm2d(4)),
        b=nn.Sequential(one, nn.BatchNorm2d(4)), c=nn.ModuleDict(dict(conv=one)))
    model.c.conv = model.c['conv']
    report = fold(model, unshare=True)
    assert report.copies==['a.0', 'b.0'] and report.copy_cost==2*148
    folded = BN_Folder(unshare=True, verify=False).fold(model, images)
    assert torch.equal(folded.c['conv'].weight, one.weight) and folded.a[0].weight is not folded.b[0].weight

def test_undo_exact():
    "In place, the shared layer is one again; a frozen copy freezes it; moved and cast, it comes along"
    model = rt()
    conv,folder = model.levels[0][0]['conv'],BN_Folder(unshare=True)
    folder.fold(model, images, inplace=True)
    assert len({id(level[0]['conv']) for level in model.levels})==3
    model.requires_grad_(False).float()
    folder.unfold()
    assert all(level[0]['conv'] is conv for level in model.levels)
    assert not conv.weight.requires_grad and conv.weight.dtype==torch.float32
    for kind in SepHead,SepBNHead:
        model = live(kind())
        folder = BN_Folder(unshare=True)
        folder.fold(model, images, inplace=True)
        model.requires_grad_(False).float().train()
        folder.unfold()
        assert not any(p.requires_grad or p.dtype!=torch.float32 for p in model.parameters())
        assert all(m.training for m in model.modules())

def test_verified_and_merged():
    for kind in SepHead,SepBNHead:
        model = live(kind()).float()
        for options in dict(),dict(merge=True),dict(layer_scale=True):
            folder,x = BN_Folder(unshare=True, **options),images.float()
            new = folder.fold(model, x)
            assert len(folder.report.folded)==6 and folder.report.max_err<1e-4
            for a,b in zip(new(x), model(x)): assert torch.allclose(a, b, atol=1e-4)
            folder.fold(model, x, inplace=True)
            for a,b in zip(new(x), model(x)): assert torch.allclose(a, b, atol=1e-4)
            folder.unfold()

def test_copies_loaded():
    "Weights alone say which layers were copied, where these have places of their own"
    model = rt()
    new = BN_Folder(unshare=True).fold(model, images)
    again = BN_Folder().load(SepBNHead().double().eval(), new.state_dict())
    for a,b in zip(again(images), new(images)): assert torch.equal(a, b)
    some = BN_Folder(unshare=True, only='levels.1').fold(model, images)
    again = BN_Folder().load(SepBNHead().double().eval(), some.state_dict())
    for a,b in zip(again(images), some(images)): assert torch.equal(a, b)
    looped = BN_Folder(unshare=True).fold(live(SepHead()), images)
    with pytest.raises(FoldError, match='save and load the whole model'):
        BN_Folder().load(SepHead().double().eval(), looped.state_dict())

def test_copies_pickled(tmp_path):
    model = live(SepHead())
    torch.save(BN_Folder(unshare=True).fold(model, images), tmp_path/'m.pth')
    again = torch.load(tmp_path/'m.pth', weights_only=False)
    for a,b in zip(again(images), model(images)): assert torch.allclose(a, b)

def test_fewer_copies():
    "A fold that is taken back leaves no copy behind"
    from fastfold.core.rules import conv_axis, conv_obstacle, LayerRule
    from fastfold.core.affine import Affine, LinearMap
    class Liar(LinearMap):
        def absorb_after(self, a): super().absorb_after(Affine(a.scale*2, a.shift))
    for kind in SepHead,SepBNHead:
        folder = BN_Folder(unshare=True, handlers={nn.Conv2d: LayerRule(conv_axis, conv_obstacle, Liar)})
        model = live(kind())
        with pytest.warns(UserWarning, match='report this'): new = folder.fold(model, images)
        assert not folder.report.folded and not folder.report.copies and not folder.report.copy_cost
        assert {k:v.shape for k,v in new.state_dict().items()}=={k:v.shape for k,v in model.state_dict().items()}

def test_overflow_leaves_no_copies():
    model = live(SepBNHead(n=2, depth=1)).float()
    bn = model.levels[1][0]['bn']
    bn.weight.data.fill_(3e38)
    bn.running_var.fill_(1e-6)
    folder = BN_Folder(unshare=True, verify=False)
    plan = folder.plan(model, images.float())
    folder.fold(model, images.float())
    assert plan==folder.report and folder.report.copies==['levels.0.0.conv']

def test_copies_of_a_learner(tmp_path):
    import fastfold.learner # noqa: F401
    from tiny_learner import learner
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv,self.bns = nn.Conv2d(3, 2, 3),nn.ModuleList([nn.BatchNorm2d(2) for _ in range(2)])
        def forward(self, x): return sum(bn(self.conv(x)).relu().mean((2,3)) for bn in self.bns)
    learn = learner(tmp_path, model=Net())
    before = state(learn.model)
    assert len(learn.fold(unshare=True).folded)==2 and learn.is_folded
    learn.unfold()
    check_same(before, state(learn.model))
    learn.fold(unshare=True)
    learn.fit(1)
    assert not learn.is_folded and isinstance(learn.model.conv, nn.Conv2d)
    learn.fold(unshare=True)
    learn.save('m')
    assert learn.is_folded
    learn.load('m')
    assert learn.is_folded and isinstance(learn.model.conv, nn.Identity)

def test_no_module():
    "What can't be folded is refused before anything is counted or copied"
    for options in dict(),dict(unshare=True),dict(only='x'):
        for f in BN_Folder(**options).fold,BN_Folder(**options).plan:
            with pytest.raises(FoldError, match='give an nn.Module'): f('resnet18')
            with pytest.raises(FoldError, match='run the model once'): f(nn.Sequential(nn.LazyLinear(2)))
