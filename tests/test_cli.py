"The command line as a whole: exit codes, messages, the files it leaves, and that these need no fastfold. Notebooks can't show a process end"
import subprocess,sys
from functools import partial
from urllib.error import URLError
import pytest
from fastfold import __version__
from fastfold.cli import main

def run(*args, **kwargs):
    "Run Python in a process of its own"
    return subprocess.run([sys.executable, *args], text=True, capture_output=True, **kwargs)

@pytest.fixture
def small(monkeypatch, tmp_path):
    "A demo without network, on a few pictures and with hardly any timing; in a folder of its own"
    from fastfold import demo
    def no_network(url): raise URLError(OSError(-2, 'Name or service not known'))
    monkeypatch.setattr(demo, 'untar_data', no_network)
    monkeypatch.setattr(demo, 'draw_pets', partial(demo.draw_pets, n=24))
    monkeypatch.setattr(demo, 'compare', partial(demo.compare, rounds=1, min_time=1e-4, batch_sizes=(1,)))
    monkeypatch.chdir(tmp_path)
    return demo

def test_help(capsys):
    for args,shown in (['--help'], 'demo'), (['demo','--help'], '--epochs'), (['--version'], f'fastfold {__version__}'):
        with pytest.raises(SystemExit) as e: main(args)
        assert e.value.code==0 and shown in capsys.readouterr().out

def test_help_is_light():
    "Help must not wait for PyTorch"
    code = 'import sys, fastfold.cli; fastfold.cli.make_parser().format_help(); print(sorted({"torch","fastai"} & set(sys.modules)))'
    assert run('-c', code).stdout=='[]\n'

def test_module(root):
    assert run('-m', 'fastfold.cli', '--version', cwd=root).stdout==f'fastfold {__version__}\n'

@pytest.mark.parametrize('args,says', [([], 'required: command'), (['flod'], "invalid choice: 'flod'"),
    (['demo','--epochs','many'], 'invalid int'), (['demo','extra'], 'extra')])
def test_usage(args, says, capsys):
    with pytest.raises(SystemExit) as e: main(args)
    assert e.value.code==2 and says in capsys.readouterr().err

@pytest.mark.parametrize('args,says', [(['--epochs','0'], 'at least 1'), (['--bs','1'], 'at least 2'), (['--device','abacus'], "device 'abacus'"),
    (['--device','cuda:99'], "device 'cuda:99'"), (['--arch','resnet81'], "no architecture 'resnet81': try resnet")])
def test_options(args, says, small, capsys, tmp_path):
    "What can't be had is said in one line, before anything is done"
    assert main(['demo', *args])==2
    out,err = capsys.readouterr()
    assert says in err and err.count('\n')==1 and not out and not any(tmp_path.iterdir())

def test_arch_without_classifier(small, capsys):
    assert main(['demo','--arch','mobilenet_v2'])==2
    assert "'mobilenet_v2' is nothing that `vision_learner` can make" in capsys.readouterr().err

def test_unwritable(small, tmp_path, capsys):
    (tmp_path/'file').touch()
    for out in 'file','file/below':
        assert main(['demo','--out',out])==1
        o,err = capsys.readouterr()
        assert "can't write to" in err and err.count('\n')==1 and not o

@pytest.mark.parametrize('error,code,says', [(OSError(28, 'No space left on device'), 1, 'No space left on device'),
    (RuntimeError('CUDA out of memory.\nTry less'), 1, 'CUDA out of memory.'), (KeyboardInterrupt(), 130, 'interrupted')])
def test_failure(error, code, says, small, monkeypatch, capsys):
    def fail(*args): raise error
    monkeypatch.setattr(small, 'pets_learner', fail)
    assert main(['demo'])==code
    err = capsys.readouterr().err
    assert err.startswith('fastfold demo: ') and says in err and err.count('\n')==1

def test_half_download(small, monkeypatch, tmp_path, capsys):
    "An interrupted download leaves nothing that looks like the start of one"
    part = tmp_path/'oxford-iiit-pet.tgz.part'
    def broken(url):
        part.touch()
        raise TimeoutError('timed out')
    monkeypatch.setattr(small, 'untar_data', broken)
    monkeypatch.setattr(small.URLs, 'path', lambda url: tmp_path/'oxford-iiit-pet.tgz')
    with small.pets() as path: names = [o.name for o in (path/'images').iterdir()]
    assert not part.exists() and len(names)==24 and not path.exists()
    assert capsys.readouterr().out=="Oxford-IIIT Pets can't be had (timed out): drawing pictures instead\n"

def test_empty_download(small, monkeypatch, tmp_path):
    (tmp_path/'images').mkdir()
    monkeypatch.setattr(small, 'untar_data', lambda url: tmp_path)
    with small.pets() as path: assert path!=tmp_path

def test_drawn_alike(small, tmp_path):
    "The same seed draws the same pictures, another one others"
    def drawn(name, seed): return {o.name: o.read_bytes() for o in (small.draw_pets(tmp_path/name, seed=seed)/'images').iterdir()}
    a,b,c = drawn('a', 0),drawn('b', 0),drawn('c', 1)
    assert a==b and a.keys()==c.keys() and a!=c

load = '''
import sys, warnings
warnings.filterwarnings('ignore')
class NoFastfold:
    def find_spec(self, name, *args):
        if name.split('.')[0]=='fastfold': raise ImportError('there is no fastfold here')
sys.meta_path.insert(0, NoFastfold())
from fastai.vision.all import *
learn = load_learner(sys.argv[1])
with learn.no_bar(): print(learn.predict(PILImage.create(np.zeros((40,50,3), dtype=np.uint8)))[0])
'''

def test_demo(small, tmp_path, capsys):
    assert main('demo --epochs 1 --size 32 --bs 8 --device cpu --out o/p'.split())==0
    out,err = capsys.readouterr()
    assert 'drawing pictures instead' in out and '22 of 22 norms folded' in out and 'latency, batch of 1' in out
    assert '\r' not in out and not err
    assert {o.name for o in (tmp_path/'o/p').iterdir()}=={'folded.pkl','report.html','report.png'}
    assert (tmp_path/'o/p/report.png').read_bytes().startswith(b'\x89PNG')
    res = run('-c', load, 'o/p/folded.pkl', cwd=tmp_path)
    assert res.stdout in ('cat\n','dog\n'), res.stderr
