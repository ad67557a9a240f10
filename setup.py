"""Minimal for the moment: the build of the extension follows."""
from setuptools import find_packages, setup

MAPPED = {"engine.plugins": "plugins", "engine.conf": "conf"}
groups = ["data", "augment", "models", "losses", "optim", "kernels", "parallel", "precision", "transfer", "observers", "jobs"]
setup(
    name="conv-engine",
    version="0.1.0",
    package_dir={"engine": "engine", **MAPPED},
    packages=["engine", *[f"engine.{p}" for p in find_packages("engine")], "engine.plugins", *[f"engine.plugins.{p}" for p in find_packages("plugins")], "engine.conf"],
    entry_points={"console_scripts": ["engine = engine.cli:main"], "engine": [f"{g} = engine.plugins.{g}" for g in groups]},
)
