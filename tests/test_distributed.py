"""Two processes that train one model, under `torchrun` and fastai's `distrib_ctx`, on the CPU. A notebook is one
process, so it can't teach this. They run once, with all scenarios of two_processes.py; the tests look at what each has
noted down"""
import json, os, signal, subprocess, sys, warnings
from pathlib import Path
import pytest
pytest.importorskip('accelerate')
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    from fastai.learner import load_learner

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Where both have written; whatever hangs is killed, with its children"
    path = tmp_path_factory.mktemp('processes')
    script = Path(__file__).with_name('two_processes.py')
    cmd = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', script, path]
    env = {**os.environ, 'OMP_NUM_THREADS':'1'}
    proc = subprocess.Popen(cmd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True)
    try: out = proc.communicate(timeout=150)[0]
    except subprocess.TimeoutExpired:
        os.killpg(proc.pid, signal.SIGKILL)
        pytest.fail(f'still running after 150 s: {proc.communicate()[0]}', pytrace=False)
    if proc.returncode: pytest.fail(out, pytrace=False)
    return path

@pytest.fixture(scope='module')
def both(folder):
    "Function: name of a scenario -> what came of it in each process"
    noted = [json.loads((folder/f'{i}.json').read_text()) for i in range(2)]
    return lambda name: [o[name] for o in noted]

@pytest.mark.parametrize('name,norms', [
    ('fit', ['1','4','10']), ('sync', ['1','4','10']), ('normalize', ['Normalize.mean','Normalize.std','1','4','10'])])
def test_fold_alike(name, norms, both):
    "the same bits in both, and one report, from the first"
    a,b = both(name)
    assert a['folded'] and b['folded'] and a['rows']==b['rows']==norms
    assert a['params']==b['params'] and a['state']==b['state'] and a['std']==b['std']
    if name=='normalize': assert a['std']==[1.]*3
    assert max(a['err'], b['err'])<1e-6 and not a['warnings'] + b['warnings']
    assert 'norms folded' in a['printed'] and not b['printed']

def test_without_validation(both):
    "running statistics differ then, so the first process's fold is for both; unfolded, each has its own again"
    a,b = both('cancelled')
    assert a['trained']!=b['trained']
    assert a['folded'] and b['folded'] and a['params']==b['params']

@pytest.mark.parametrize('name,why', [('fails', 'process 1: Sequential failed'), ('differs', 'different norms')])
def test_one_fails(name, why, both):
    "then none is folded, and there is one warning"
    a,b = both(name)
    assert not a['folded'] and not b['folded'] and a['params']==b['params']
    assert a['state']==a['trained'] and b['state']==b['trained']
    warning, = a['warnings']
    assert 'not folded' in warning and why in warning and not b['warnings'] and not a['printed'] + b['printed']

@pytest.mark.filterwarnings('ignore:load_learner')
def test_export(both, folder):
    "the first process writes, and nothing is left by the second"
    a,b = both('exported')
    assert a['files']==b['files']==['export.pkl']
    assert not any('BatchNorm2d(4' in str(m) for m in load_learner(folder/'export.pkl').model[:5])

def test_trained_on(both):
    "folded, used and unfolded in between, all weights are what they are without fastfold"
    for o in both('trained_on'): assert o['same'] and o['preds']<1e-5

def test_interrupted(both):
    "what is left wrapped for several processes can be folded by each alone, as it asks the plain loader inside"
    for o in both('interrupted'):
        assert (o['wrapped'], o['loader'])==('DistributedDataParallel', 'DistributedDL')
        assert not o['before'] and o['after'] and o['n']==3 and o['err']<1e-6

def test_models_that_are_not_shared(both):
    "nobody waits for a process that trains something else"
    a,b = both('alone')
    assert a['folded'] and not b['folded']
