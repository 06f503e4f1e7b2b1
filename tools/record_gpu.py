"""Run notebooks on a machine with a CUDA GPU, and store what their `#| cuda` cells put out.

The machine needs no network, and beside the checkout only PyTorch, torchvision, fastai and execnb. Where cells ask for
the Oxford-IIIT Pets, FASTAI_HOME names the directory with data/oxford-iiit-pet/images in it.

All cells run, since those on the GPU build on the others, but for those marked `notest` or `eval: false`. Only what the
`#| cuda` cells put out is stored, and only if all went well and they name the GPU and the version of PyTorch.
Everything else in a notebook stays as it is, to the letter."""
import argparse,json,os,platform,re,sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent

def flags(
    cell:dict, # as it is in the notebook's JSON
) -> dict: # flag -> what stands behind it
    "The flags of a cell, such as `#| cuda`, which stand in its first lines"
    head = re.match(r'(\s*#\|.*\n?)*', ''.join(cell['source']))[0]
    return {k: v.strip() for k,v in re.findall(r'#\|\s*(\w+):?(.*)', head)}

def runs(cell:dict) -> bool:
    "Is a cell to be run?"
    f = flags(cell)
    return cell['cell_type']=='code' and 'notest' not in f and f.get('eval')!='false'

def rehearsed(
    src:str, # of a cell
    device:str, # 'cpu' or 'gpu'
) -> str: # the same without CUDA
    "What a cell does when a recording is rehearsed"
    if device=='gpu': return re.sub(r'''(['"])cuda\1''', "'gpu'", re.sub(r'\.cuda\b', '.gpu', src))
    cpu = dict(is_available='True', synchronize='None', get_device_name=repr(platform.machine()))
    src = re.sub(rf'torch\.cuda\.({"|".join(cpu)})\(\)', lambda m: cpu[m[1]], src)
    return re.sub(r'''(['"])cuda\1''', "'cpu'", src.replace('.cuda()', '.cpu()'))

def name_of(device:str) -> str:
    "What the first recorded cell has to say that it ran on"
    import torch
    if device=='cpu': return platform.machine()
    return getattr(torch, device).get_device_name()

def clean(
    outs:list, # of a cell, as execnb returns them
) -> list: # as they are stored
    "Without what differs from run to run, and without warnings, which are shown here instead"
    for o in outs:
        if o.get('name')=='stderr': print(''.join(o['text']), file=sys.stderr)
        o.update({k:v for k,v in dict(execution_count=None, metadata={}).items() if k in o})
        for d in (o, o.get('data', {})):
            for k,v in d.items():
                if k.startswith('text'): d[k] = re.sub(r'(?<=\w) at 0x\w+', '', ''.join(v)).splitlines(keepends=True)
    return [o for o in outs if o.get('name')!='stderr']

def execute(
    nb:dict, # a notebook's JSON; the outputs of its `#| cuda` cells are replaced
    path:Path, # where it lies
    device:str, # 'cuda', or what it is rehearsed on
):
    "Run a notebook from top to bottom, up to its last `#| cuda` cell"
    from execnb.shell import CaptureShell
    todo = [c for c in nb['cells'] if runs(c)]
    last = max(i for i,c in enumerate(todo) if 'cuda' in flags(c))
    shell,before = CaptureShell(path),os.getcwd()
    os.chdir(path.parent)
    try:
        for i,c in enumerate(todo[:last+1]):
            is_cuda,src = 'cuda' in flags(c),''.join(c['source'])
            print(f'{path.name}: cell {i+1} of {last+1}', '(recorded)'*is_cuda, flush=True)
            outs = shell.run(rehearsed(src, device) if is_cuda and device!='cuda' else src)
            if shell.exc:
                tb = shell.prettytb(fname=path)
                raise RuntimeError(f'{path.name}: this cell failed, so nothing is stored:\n\n{src}\n\n{tb}')
            if is_cuda: c['outputs'] = clean(outs)
    finally:
        os.chdir(before)
        shell.close()

def record(
    path:Path, # of a notebook
    out:Path, # where to write it
    device:str, # 'cuda', or 'cpu' or 'gpu' to rehearse
) -> int: # number of cells recorded
    "Store what the `#| cuda` cells of a notebook put out"
    import torch
    nb = json.loads(path.read_text(encoding='utf-8'))
    recorded = [c for c in nb['cells'] if 'cuda' in flags(c)]
    if not recorded: raise RuntimeError(f'{path.name} has no cell with `#| cuda` in its first line')
    if device=='cuda' and not torch.cuda.is_available():
        raise RuntimeError('PyTorch finds no CUDA GPU here: rehearse with --device cpu and --out')
    if device=='gpu':
        sys.path.insert(0, str(root/'tests'))
        import second_device # noqa: F401 (from now on, PyTorch has it)
    execute(nb, path.resolve(), device)
    told = json.dumps([c['outputs'] for c in recorded])
    for o in (name_of(device), torch.__version__):
        if o not in told:
            raise RuntimeError(f"{path.name}: no recorded cell says '{o}': "
                "print the GPU's name and torch.__version__ in the first of them")
    tmp = out.with_name(f'{out.name}.part')
    tmp.write_text(json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False)+'\n', encoding='utf-8')
    tmp.replace(out)
    return len(recorded)

def is_kept_apart(
    out:Path|None, # directory to write to
    notebooks:list[Path],
) -> bool:
    "Does what is written go neither over the notebooks nor among those of the project?"
    if out is None: return False
    out = out.resolve()
    return out not in [o.resolve().parent for o in notebooks] and not out.is_relative_to((root/'nbs').resolve())

def main(argv=None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('notebooks', nargs='+', type=Path, help='paths, such as nbs/guide/tutorial.pets.ipynb')
    p.add_argument('--out', type=Path, help='directory to write to; in place by default')
    told = 'cpu is a rehearsal without a GPU; gpu is one on the second device of tests/, made of CPU memory. ' \
        'What they put out never goes into the notebooks'
    p.add_argument('--device', choices=['cuda','cpu','gpu'], default='cuda', help=told)
    args = p.parse_args(argv)
    if args.device!='cuda' and not is_kept_apart(args.out, args.notebooks):
        p.error(f'--device {args.device} needs --out with another directory, outside of nbs, '
            'so that no rehearsal is stored as a recording')
    sys.path.insert(0, str(root))
    for o in args.notebooks:
        try: n = record(o, args.out/o.name if args.out else o, args.device)
        except (OSError, RuntimeError, ValueError) as e: return print(e, file=sys.stderr) or 1
        print(f'{o.name}: {n} cells recorded' + '; run nbdev-clean before it is committed'*(args.device=='cuda'))
    return 0

if __name__=='__main__': sys.exit(main())
