"""Check the types of the package with mypy, with every `@patch`ed method where a type checker looks for it: in its class.

mypy doesn't know fastcore's `@patch`, and would miss the larger part of what each class here can do. So it gets a copy of the package in which the class
declares the method, and what it finds is told for the lines of the package itself"""
import ast,re,shutil,subprocess,sys,tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent

def patched(
    tree:ast.Module,
) -> list[tuple[str,bool,ast.FunctionDef,ast.expr]]: # class, is it a property?, function, decorator
    "The functions that `@patch` makes methods of a class"
    res = []
    for f in tree.body:
        for d in f.decorator_list if isinstance(f, ast.FunctionDef) else ():
            name = getattr(d.func if isinstance(d, ast.Call) else d, 'id', '')
            if name=='patch': res.append((ast.unparse(f.args.args[0].annotation), isinstance(d, ast.Call), f, d))
    return res

def declaration(f:ast.FunctionDef, is_prop:bool) -> list[str]: # lines
    "What stands in the class for the function `f`"
    f = ast.parse(ast.unparse(f)).body[0]
    f.args.args[0].annotation,f.decorator_list,f.body = None,[],ast.parse('raise NotImplementedError').body
    return ['    @property']*is_prop + ['    '+o for o in ast.unparse(f).splitlines()]

def merged(
    src:str, # of a module
) -> tuple[str,list[int]]: # with its methods declared, and for each line its number in the module
    "Lines are added, none is moved to another place, and functions that were patched in get names that nothing else has"
    tree,lines = ast.parse(src),src.splitlines()
    more:dict[int,list[str]] = {}
    ends = {c.name:c.end_lineno for c in tree.body if isinstance(c, ast.ClassDef)}
    for cls,is_prop,f,d in patched(tree):
        lines[d.lineno-1] = '# '+lines[d.lineno-1]
        lines[f.lineno-1] = lines[f.lineno-1].replace(f'def {f.name}(', f'def _{cls}_{f.name}(')
        if cls in ends: more.setdefault(ends[cls], []).extend(declaration(f, is_prop))
    res = [(n, o) for n,line in enumerate(lines, 1) for o in (line, *more.get(n, []))]
    return '\n'.join(o for _,o in res)+'\n', [n for n,_ in res]

def main() -> int:
    with tempfile.TemporaryDirectory() as d:
        shutil.copytree(root/'fastfold', f'{d}/fastfold', ignore=shutil.ignore_patterns('__pycache__', '_modidx.py'))
        at = {}
        for f in Path(d).glob('fastfold/**/*.py'):
            new,at[f.relative_to(d).as_posix()] = merged(f.read_text(encoding='utf-8'))
            f.write_text(new, encoding='utf-8')
        cmd = [sys.executable, '-m', 'mypy', '--config-file', root/'pyproject.toml', '--cache-dir', Path(sys.prefix)/'mypy-cache', *sys.argv[1:], 'fastfold']
        res = subprocess.run(cmd, cwd=d, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print(re.sub(r'^(fastfold/[\w/]+\.py):(\d+)', lambda m: f'{m[1]}:{at[m[1]][int(m[2])-1]}', res.stdout, flags=re.M), end='')
    return res.returncode

if __name__=='__main__': sys.exit(main())
