"""Maps the rooms to packages and builds the C++ extension with ninja; the metadata is in pyproject.toml.

``plugins/`` is installed as ``engine.plugins`` and ``conf/`` as ``engine.conf``, so ``engine`` is the only
import name that an installation adds. CXX, CXXFLAGS and LDFLAGS are respected.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

FLAGS = [
    *["-std=c++17", "-O3", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"],
    *shlex.split(os.environ.get("CXXFLAGS", "")),
]

# The sources of csrc/cpu/conv are compiled once per instruction set, and the machine at hand chooses among them when
# the extension is loaded: the levels of the x86-64 ABI, and elsewhere what every machine of the kind has (NEON on
# aarch64).
INSTRUCTION_SETS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS |= {"avx2": ["-march=x86-64-v3"], "avx512": ["-march=x86-64-v4"]}


class NinjaBuild(build_ext):
    """Compiles in parallel and only what changed: ninja keeps objects and header dependencies between builds."""

    def build_extension(self, ext: Extension) -> None:
        """Build ``ext`` in a folder that outlives the command, and copy it to where setuptools wants it."""
        # Keyed by the interpreter: its headers differ, and its objects must not be taken for another's.
        folder = Path("build", f"ninja-{sysconfig.get_config_var('SOABI')}")
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / Path(self.get_ext_fullpath(ext.name)).name
        rules = folder / f"{ext.name}.ninja"
        self.write_rules(rules, folder, target, ext)
        require_instruction_sets()
        if subprocess.run([sys.executable, "-m", "ninja", "-f", rules]).returncode:
            raise CompileError(f"{ext.name} was not built; the compiler's message is above")
        installed = self.get_ext_fullpath(ext.name)
        self.mkpath(os.path.dirname(installed))
        self.copy_file(target, installed)
        print(f"{ext.name}: {len(ext.sources)} sources, {compiler()}, objects kept in {folder}")

    def write_rules(self, rules: Path, folder: Path, target: Path, ext: Extension) -> None:
        """Write the ninja file of one extension, with paths relative to the repository's root."""
        from ninja import Writer  # build requirements: absent when only the metadata is asked for

        with rules.open("w") as file:
            ninja = Writer(file)
            ninja.variable("builddir", str(folder))
            ninja.rule(
                "compile",
                f"{compiler()} $flags -MMD -MF $out.d -c $in -o $out",
                description="compile $in",
                depfile="$out.d",
                deps="gcc",
            )
            ninja.rule(
                "link",
                f"{compiler()} -shared -fopenmp $in -o $out {os.environ.get('LDFLAGS', '')}",
                description="link $out",
            )
            objects = []
            for source in ext.sources:
                for suffix, own in self.variants(source).items():
                    flags = quote([*FLAGS, *own])
                    built = str(folder / f"{source}{suffix}.o")
                    objects += ninja.build(built, "compile", source, variables={"flags": flags})
            ninja.build(str(target), "link", objects)
            ninja.default(str(target))

    def variants(self, source: str) -> dict[str, list[str]]:
        """Return the objects to make of a source: the suffix of each one's name, and its own flags."""
        if Path(source).parent.name != "conv":
            return {"": self.flags_of(source)}
        # Sums are fused into multiplications wherever the instruction set can: the kernels count on it.
        common = ["-fopenmp", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
        return {f".{isa}": [f"-DENGINE_ISA={isa}", *common, *flags] for isa, flags in INSTRUCTION_SETS.items()}

    def flags_of(self, source: str) -> list[str]:
        """Return a source's own flags: the bindings alone see Python, so no kernel can come to depend on it."""
        if Path(source).name != "bindings.cpp":
            return []
        import pybind11

        facts = {"ENGINE_VERSION": self.distribution.get_version(), "ENGINE_FLAGS": " ".join(FLAGS)}
        includes = [pybind11.get_include(), sysconfig.get_path("include")]
        return [*(f"-I{path}" for path in includes), *(f'-D{name}="{text}"' for name, text in facts.items())]


def compiler() -> str:
    """Return the C++ compiler's command; raises CompileError saying what to install where there is none."""
    command = os.environ.get("CXX") or "c++"
    if not shutil.which(shlex.split(command)[0]):
        raise CompileError(f"no C++ compiler: '{command}' was not found; install g++ or clang++, or set CXX")
    return command


def require_instruction_sets() -> None:
    """Raise CompileError saying what to install if the compiler does not know an instruction set."""
    for flags in filter(None, INSTRUCTION_SETS.values()):
        trial = [*shlex.split(compiler()), *flags, "-x", "c++", "-fsyntax-only", os.devnull]
        if subprocess.run(trial, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
            raise CompileError(
                f"the C++ compiler '{compiler()}' does not know {' '.join(flags)}; GCC 11 or Clang 12 is needed, or "
                "newer: install one, or set CXX"
            )


def quote(flags: list[str]) -> str:
    """Return flags as one line that ninja and then the shell read back as they are."""
    return shlex.join(flags).replace("$", "$$")


plugins = find_packages("plugins")

setup(
    package_dir={"engine": "engine", "engine.plugins": "plugins", "engine.conf": "conf"},
    packages=[
        "engine",
        *(f"engine.{name}" for name in find_packages("engine")),
        "engine.plugins",
        *(f"engine.plugins.{name}" for name in plugins),
        "engine.conf",
    ],
    package_data={"engine": ["py.typed", "*.pyi"], "engine.conf": ["**/*.yaml"]},
    entry_points={
        "console_scripts": ["engine = engine.cli:main"],
        # A folder of plugins/ is a built-in plugin; setuptools found them above.
        "engine": [f"{name} = engine.plugins.{name}" for name in plugins if "." not in name],
    },
    ext_modules=[
        Extension(
            "engine._cpu",
            sources=["csrc/bindings.cpp", *sorted(map(str, Path("csrc/cpu").rglob("*.cpp")))],
            depends=sorted(map(str, Path("csrc").rglob("*.h"))),  # also what puts them in a source distribution
        )
    ],
    cmdclass={"build_ext": NinjaBuild},
)
