"Only the requirements, which settings.ini holds; everything else is in pyproject.toml"
from configparser import ConfigParser
from setuptools import setup

cfg = ConfigParser(delimiters=['='], interpolation=None)
cfg.read('settings.ini', encoding='utf-8')
reqs = cfg['DEFAULT']
extras = {k: reqs[f'{k}_requirements'].split() for k in ('dev','deploy','peers')}
setup(install_requires=reqs['requirements'].split(), extras_require=extras)
