"""Models that stand somewhere on the way to integers: those that are only ready for it fold like any, and the rest say
how far they are and what to do. In float64, to 1e-9, without verification"""
import warnings
from copy import deepcopy
import pytest, torch
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as tq
from torch import nn
from torch.ao.nn.intrinsic import ConvBn2d, ConvReLU2d
from torch.ao.quantization.quantize_fx import convert_fx, convert_to_reference_fx, prepare_fx, prepare_qat_fx
from torchvision.models import quantization as tvq
from fastfold.core.check import check_model
from fastfold.core.refusals import FoldError
from fastfold.folder import BN_Folder
from random_nets import difference, live

warnings.filterwarnings('ignore', module='torch')
images = torch.randn(2, 3, 8, 8)

class Net(nn.Module):
    "What is written for quantization: stubs at both ends, and a sum that a module takes"
    def __init__(self):
        super().__init__()
        self.quant,self.dequant,self.sum = tq.QuantStub(),tq.DeQuantStub(),nn.quantized.FloatFunctional()
        self.conv1,self.bn1 = nn.Conv2d(3, 4, 3, bias=False),nn.BatchNorm2d(4)
        self.conv2,self.bn2 = nn.Conv2d(3, 4, 3, bias=False),nn.BatchNorm2d(4)
    def forward(self, x):
        x = self.quant(x)
        return self.dequant(self.sum.add(self.bn1(self.conv1(x)).relu(), self.bn2(self.conv2(x))))

def net(mode='eval', backend='fbgemm'):
    m = Net()
    m.qconfig = tq.get_default_qat_qconfig(backend) if mode=='train' else tq.get_default_qconfig(backend)
    return m.train(mode=='train')

def refusal(model):
    with pytest.raises(FoldError) as e: BN_Folder().fold(model, images)
    return str(e.value)

def is_told(model, *parts):
    before = {k:v for k,v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    told = refusal(model)
    for o in parts: assert o in told, told
    assert all(v is before[k] or torch.equal(v, before[k]) for k,v in model.state_dict().items() if k in before)

# what must be refused

trained,observed,converted = 'before `prepare_qat`','before `prepare`','fold first, then quantize'

def test_qat():
    "Fake quantization is in the weights that a norm would change, and a fused norm is no module of its own"
    m = tq.prepare_qat(net('train'))
    is_told(m, "'quant.activation_post_process'", trained)
    is_told(m.eval(), trained)
    fused = tq.prepare_qat(tq.fuse_modules_qat(net('train'), [['conv1','bn1']]))
    with pytest.raises(FoldError, match=trained) as e: check_model(fused.conv1)
    assert 'ConvBn2d' in str(e.value) and 'quantization-aware training' in str(e.value)
    is_told(nn.Sequential(tq.FakeQuantize(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "'0'", trained)

def test_qat_own_class():
    class Own(torch.ao.nn.qat.Conv2d): pass
    own = Own(3, 4, 1, qconfig=tq.get_default_qat_qconfig('fbgemm'))
    is_told(nn.Sequential(own, nn.BatchNorm2d(4)), "at '0': Own", trained)

def test_qat_fx():
    qconfig = tq.get_default_qat_qconfig_mapping('fbgemm')
    is_told(prepare_qat_fx(net('train'), qconfig, (images,)), trained)

def test_observed():
    "Observers have seen values that a fold changes"
    m = tq.prepare(net())
    is_told(m, 'Observer', observed, 'HistogramObserver')
    m(images)
    is_told(m, observed)
    class Own(tq.MinMaxObserver): pass
    is_told(nn.Sequential(Own(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "at '0': Own", observed)

def test_observed_fx():
    is_told(prepare_fx(net(), tq.get_default_qconfig_mapping('fbgemm'), (images,)), observed)

def test_converted():
    m = tq.prepare(net())
    m(images)
    is_told(tq.convert(m), "'quant'", '(Quantize)', converted)
    is_told(tq.quantize_dynamic(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4)), {nn.Linear}), "'1'", converted)
    is_told(nn.Sequential(nn.BatchNorm1d(3), nnq.QFunctional()), '(QFunctional)', converted)
    class Own(nnq.Linear): pass
    is_told(nn.Sequential(nn.BatchNorm1d(3), Own(3, 3)), '(Own)', converted)

@pytest.mark.parametrize('convert', [convert_fx, convert_to_reference_fx])
def test_converted_fx(convert):
    m = prepare_fx(net(), tq.get_default_qconfig_mapping('fbgemm'), (images,))
    m(images)
    is_told(convert(m), converted)

def test_converted_qat():
    m = tq.prepare_qat(net('train'))
    m(images)
    is_told(tq.convert(m.eval()), converted)

# what folds

def folds(model, x, more=(), copy=True):
    "Fold `model`, made live in float64; nothing is left, and it computes the same, in place and, if wanted, in a copy"
    live(model)
    n = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    xs,folder = [x, *more],BN_Folder(verify=False)
    want = [model(o) for o in xs]
    folded = folder.fold(model, x, inplace=not copy)
    assert len(folder.report.rows)==n and not folder.report.kept, str(folder.report)
    for o,w in zip(xs, want): assert difference([w], [folded(o)])<1e-9
    if copy: folder.fold(model, x, inplace=True)
    for o,w in zip(xs, want): assert difference([w], [model(o)])<1e-9
    folder.unfold()
    for o,w in zip(xs, want): assert torch.equal(w, model(o))
    return folded

@pytest.mark.parametrize('qconfig', [False, True])
def test_stubs(qconfig):
    "A `qconfig` alone changes nothing yet"
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    m = net() if qconfig else Net().eval()
    folded = folds(m, x, [torch.randn(3, 3, 5, 7, dtype=torch.float64)])
    tq.convert(tq.prepare(net() if qconfig else Net())) # what it is for
    tq.prepare(deepcopy(folded.float())) # and what comes next

def test_functional():
    "What a sum, a product and a join by a `FloatFunctional` are is what its functions are"
    class M(Net):
        def forward(self, x):
            a,b = self.bn1(self.conv1(x)),self.bn2(self.conv2(x))
            return self.sum.cat([self.sum.add_relu(a, b), self.sum.mul_scalar(a, 2.), self.sum.add_scalar(b, 1.)], 1)
    folds(M().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64))

def test_fused_but_float():
    "`fuse_modules` puts a convolution and a norm into a `Sequential`, which is nothing else yet"
    m = nn.Sequential(ConvBn2d(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), ConvReLU2d(nn.Conv2d(4, 4, 1), nn.ReLU()))
    folds(m.eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64))

archs = [o for o in dir(tvq) if o.islower() and callable(getattr(tvq, o)) and not o.startswith('_')]

def test_archs(): assert len(archs)==12

@pytest.mark.parametrize('arch', archs)
def test_torchvision(arch):
    options = dict(init_weights=False) if arch in ('googlenet', 'inception_v3') else {}
    if options: options['aux_logits'] = False
    m = getattr(tvq, arch)(quantize=False, **options).eval()
    n = 96 if arch=='inception_v3' else 64
    folds(m, torch.randn(1, 3, n, n, dtype=torch.float64), copy='resnext' not in arch)
