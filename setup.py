"""Maps the rooms to packages and builds the compiled extensions with ninja; the metadata is in pyproject.toml.

``plugins/`` is installed as ``engine.plugins`` and ``conf/`` as ``engine.conf``, so ``engine`` is the only
import name that an installation adds. CXX, CXXFLAGS and LDFLAGS are respected.

``engine._cpu`` is always built. ``engine._cuda`` is built where nvcc (of CUDA_HOME or CUDA_PATH, else on PATH) is
found, with or without a GPU; ENGINE_CUDA=0 leaves it out, ENGINE_CUDA=1 fails where it cannot be built, and a line
tells what was done and why. ENGINE_CUDA_ARCHS="80;90" names the compute capabilities to compile for, else the GPUs of
the machine do, else it is ARCHITECTURES.

JPEG is decoded by libjpeg-turbo where its headers are found; else by simplejpeg, which brings its own and decodes whole
images only. ENGINE_JPEG=0 does not look for them, ENGINE_JPEG=1 fails where they are absent, and a line tells.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

CUDA = "engine._cuda"
CXXFLAGS = shlex.split(os.environ.get("CXXFLAGS", ""))
LDFLAGS = shlex.split(os.environ.get("LDFLAGS", ""))
FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", *CXXFLAGS]

# The sources of the folders in BY_INSTRUCTION_SET are compiled once per instruction set, and the machine at hand
# chooses among them when the extension is loaded: the levels of the x86-64 ABI, and elsewhere what every machine of the
# kind has (NEON on aarch64).
BY_INSTRUCTION_SET = ("conv", "images", "rounding", "binary", "lrn")  # folders of csrc/cpu
INSTRUCTION_SETS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS |= {"avx2": ["-march=x86-64-v3"], "avx512": ["-march=x86-64-v4"]}

# More sets for the sources of a folder. Counting bits and multiplying bytes have instructions of their own, which
# -march=x86-64-v4 does not promise (Ice Lake, Zen 4 and later have them).
MORE_SETS = {"binary": {"vpopcntdq": ["-march=x86-64-v4", "-mavx512vpopcntdq", "-mavx512vnni"]}}

ARCHITECTURES = (80, 90)  # compute capabilities to compile for where no GPU says: A100, H100 and what runs their code
OLDEST = 80  # the kernels share more memory among a block's threads than older GPUs have


class NinjaBuild(build_ext):
    """Compiles in parallel and only what changed: ninja keeps objects and header dependencies between builds."""

    def run(self) -> None:
        """Build the extensions; leave out that of CUDA where it is not to be built, and say so."""
        self.nvcc = find_nvcc()
        if isinstance(self.nvcc, str):
            self.extensions = [ext for ext in self.extensions if ext.name != CUDA]
            self.forget(CUDA)
            tell(CUDA, f"not built: {self.nvcc}")
        super().run()

    def build_extension(self, ext: Extension) -> None:
        """Build ``ext`` in a folder that outlives the command, and copy it to where setuptools wants it."""
        tools = self.nvcc if ext.name == CUDA else Gcc(self.distribution.get_version())
        tools.require()
        if ext.name != CUDA:
            tell("JPEG", tools.jpeg)
        # Keyed by the interpreter: its headers differ, and its objects must not be taken for another's.
        folder = Path("build", f"ninja-{sysconfig.get_config_var('SOABI')}", ext.name)
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / Path(self.get_ext_fullpath(ext.name)).name
        write_rules(folder, target, ext.sources, tools)
        if subprocess.run([sys.executable, "-m", "ninja", "-f", folder / "build.ninja"]).returncode:
            raise CompileError(f"{ext.name} was not built; the compiler's message is above{tools.way_out}")
        installed = self.get_ext_fullpath(ext.name)
        self.mkpath(os.path.dirname(installed))
        self.copy_file(target, installed)
        tell(ext.name, f"{len(ext.sources)} sources, {tools}, objects kept in {folder}")

    def forget(self, name: str) -> None:
        """Remove an extension that an earlier build made: it would be loaded, whatever has changed since."""
        for folder in (self.build_lib, *([""] if self.inplace or self.editable_mode else [])):
            Path(folder, self.get_ext_filename(name)).unlink(missing_ok=True)


def tell(name: str, text: str) -> None:
    """Print a line on an extension, and keep it in build/, since pip shows nobody what is printed."""
    print(f"{name}: {text}")
    Path("build").mkdir(exist_ok=True)
    Path("build", f"{name}.txt").write_text(f"{name}: {text}\n")


def write_rules(folder: Path, target: Path, sources: list[str], tools: "Gcc | Nvcc") -> None:
    """Write the ninja file of one extension, with paths relative to the repository's root."""
    from ninja import Writer  # build requirements: absent when only the metadata is asked for

    with (folder / "build.ninja").open("w") as file:
        ninja = Writer(file)
        ninja.variable("builddir", str(folder))
        compiling = f"{tools.command()} $flags -MMD -MF $out.d -c $in -o $out"
        ninja.rule("compile", compiling, description="compile $in", depfile="$out.d", deps="gcc")
        linking = f"{tools.command()} {quote(tools.linking)} $in -o $out {quote(tools.libraries)}"
        ninja.rule("link", linking, description="link $out")
        objects = []
        for source in sources:
            for suffix, flags in tools.variants(source).items():
                built = str(folder / f"{source}{suffix}.o")
                objects += ninja.build(built, "compile", source, variables={"flags": quote(flags)})
        ninja.build(str(target), "link", objects)
        ninja.default(str(target))


# Compiles where libjpeg-turbo's headers are, and links where its library is.
JPEG_TRIAL = """
#include <cstdio>
#include <jpeglib.h>
#if !defined(LIBJPEG_TURBO_VERSION) || !defined(JCS_EXTENSIONS)
#error "these are not libjpeg-turbo's headers"
#endif
int main() {
    jpeg_decompress_struct info;
    jpeg_create_decompress(&info);
    return jpeg_skip_scanlines(&info, 0);
}
"""


class Gcc:
    """The C++ compiler, GCC or Clang, and what it makes of a source.

    jpeg: what decodes JPEG, in words.
    """

    linking = ("-shared", "-fopenmp", *LDFLAGS)
    way_out = ""

    def __init__(self, version: str) -> None:
        self.version = version
        self.jpeg = ""
        self.libraries: list[str] = []

    def command(self) -> str:
        """Return how it is called."""
        return os.environ.get("CXX") or "c++"

    __str__ = command

    def require(self) -> None:
        """Raise CompileError saying what to install if there is no compiler, or it lacks an instruction set."""
        words = shlex.split(self.command())
        if not shutil.which(words[0]):
            raise CompileError(f"no C++ compiler: '{self}' was not found; install g++ or clang++, or set CXX")
        for flags in filter(None, INSTRUCTION_SETS.values()):
            trial = [*words, *flags, "-x", "c++", "-fsyntax-only", os.devnull]
            if subprocess.run(trial, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
                raise CompileError(
                    f"the C++ compiler '{self}' does not know {' '.join(flags)}; GCC 11 or Clang 12 is needed, or "
                    "newer: install one, or set CXX"
                )
        reason = no_jpeg(words)
        self.libraries = [] if reason else ["-ljpeg"]
        self.jpeg = (
            f"decoded by simplejpeg, whole images only: {reason}"
            if reason
            else "decoded by libjpeg-turbo, only the part and the size that a crop needs"
        )

    def variants(self, source: str) -> dict[str, list[str]]:
        """Return the objects to make of a source: the suffix of each one's name, and its flags."""
        if source.endswith("bindings.cpp"):
            facts = {"ENGINE_VERSION": self.version, "ENGINE_FLAGS": " ".join(FLAGS)}
            return {"": [*FLAGS, *python_headers(), *(f'-D{name}="{text}"' for name, text in facts.items())]}
        if Path(source).parent.name not in BY_INSTRUCTION_SET:
            return {"": [*FLAGS, *(["-DENGINE_JPEG"] if self.libraries else [])]}
        # Sums are fused into multiplications wherever the instruction set can: the kernels count on it.
        common = [*FLAGS, "-fopenmp", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
        return {f".{isa}": [*common, f"-DENGINE_ISA={isa}", *flags] for isa, flags in sets_of(source).items()}


def no_jpeg(compiler: list[str]) -> str:
    """Return why JPEG is not decoded by libjpeg-turbo, "" if it is; CompileError for what cannot be followed."""
    wish = os.environ.get("ENGINE_JPEG", "")
    if wish not in ("", "0", "1"):
        raise CompileError(f"ENGINE_JPEG={wish}: 1 decodes with libjpeg-turbo, 0 does not; unset, where it is found")
    if wish == "0":
        return "ENGINE_JPEG=0"
    trial = [*compiler, *CXXFLAGS, "-x", "c++", "-", "-o", os.devnull, *LDFLAGS, "-ljpeg"]
    if not subprocess.run(trial, input=JPEG_TRIAL, text=True, capture_output=True).returncode:
        return ""
    reason = "libjpeg-turbo's headers were not found"
    if wish == "1":
        raise CompileError(
            f"ENGINE_JPEG=1: {reason}; install libjpeg62-turbo-dev (Debian), libjpeg-turbo8-dev (Ubuntu) or "
            "libjpeg-turbo-devel (Fedora)"
        )
    return reason


@dataclass(frozen=True)
class Nvcc:
    """NVIDIA's compiler, which knows its own headers and libraries and has a C++ compiler do what is not CUDA.

    architectures: compute capabilities without their point, each of which gets machine code; the newest as PTX too,
    which drivers compile for GPUs to come. why: in words, why these.
    """

    path: str
    version: str
    architectures: tuple[int, ...]
    why: str

    way_out = "; ENGINE_CUDA=0 builds without it"
    libraries = ()

    def __str__(self) -> str:
        codes = [f"sm_{a}" for a in self.architectures]
        return f"nvcc {self.version}, {', '.join(codes)} and PTX of the last ({self.why})"

    def command(self) -> str:
        """Return how it is called: with the C++ compiler of CXX, unless that comes with a launcher or options."""
        given = shlex.split(os.environ.get("CXX", ""))
        found = shutil.which(given[0]) if len(given) == 1 else None
        return quote([self.path, *([f"-ccbin={found}"] if found else [])])

    @property
    def linking(self) -> list[str]:
        """The flags of the link: a CUDA runtime of our own, hidden inside, so that torch's may be of any version."""
        return ["-shared", "-cudart=static", *for_host(LDFLAGS)]

    def require(self) -> None:
        """Raise nothing: it was found."""

    def variants(self, source: str) -> dict[str, list[str]]:
        """Return the object to make of a source, and its flags; the bindings alone see Python."""
        flags = ["-std=c++17", "-O3", "-DNDEBUG", *for_host(["-fPIC", "-fvisibility=hidden", *CXXFLAGS])]
        if source.endswith(".cu"):
            newest = max(self.architectures)
            codes = [f"arch=compute_{a},code=sm_{a}" for a in self.architectures]
            flags += [f"-gencode={code}" for code in (*codes, f"arch=compute_{newest},code=compute_{newest}")]
        elif source.endswith("bindings.cpp"):
            flags += python_headers()
        return {"": flags}


def sets_of(source: str) -> dict[str, list[str]]:
    """Return the instruction sets that a source is compiled for, and the flags of each."""
    more = MORE_SETS.get(Path(source).parent.name, {}) if "avx512" in INSTRUCTION_SETS else {}
    return INSTRUCTION_SETS | more


def find_nvcc() -> Nvcc | str:
    """Return what builds the CUDA kernels, or why they are not built; CompileError for what cannot be followed."""
    wish, named = os.environ.get("ENGINE_CUDA", ""), os.environ.get("ENGINE_CUDA_ARCHS", "")
    if wish not in ("", "0", "1"):
        raise CompileError(f"ENGINE_CUDA={wish}: 1 builds {CUDA}, 0 does not; unset, it is built where nvcc is found")
    if wish == "0":
        return "ENGINE_CUDA=0"
    found = usable_nvcc(named)
    if wish == "1" and isinstance(found, str):
        raise CompileError(f"ENGINE_CUDA=1: {found}")
    return found


def usable_nvcc(named: str) -> Nvcc | str:
    """Return nvcc and what it shall compile for, or why there is none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    path = shutil.which("nvcc", path=os.path.join(home, "bin") if home else None)
    if path is None:
        where = f"in {home}/bin" if home else "on PATH"
        return f"there is no nvcc {where}; install the CUDA toolkit, or set CUDA_HOME to where it is"
    version = re.search(r"release (\d+\.\d+)", output(path, "--version"))
    listed = re.findall(r"compute_(\d+)\b", output(path, "--list-gpu-arch"))
    known = sorted({int(number) for number in listed if int(number) >= OLDEST})
    if version is None or not known:
        return f"{path} does not run, or knows no GPU from sm_{OLDEST} on"
    if named:
        return Nvcc(path, version[1], parse_architectures(named, known), "ENGINE_CUDA_ARCHS")
    gpus = output("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    present = sorted({int(major + minor) for major, minor in re.findall(r"^(\d+)\.(\d)$", gpus, re.MULTILINE)})
    usable = sorted({max(a for a in known if a <= gpu) for gpu in present if gpu >= known[0]})
    if usable:
        return Nvcc(path, version[1], tuple(usable), "the GPUs of this machine")
    why = f"the GPUs of this machine are older than sm_{known[0]}" if present else "nvidia-smi finds no GPU"
    usual = [a for a in ARCHITECTURES if a in known] or known[-1:]
    return Nvcc(path, version[1], tuple(usual), f"by default, as {why}")


def parse_architectures(named: str, known: list[int]) -> tuple[int, ...]:
    """Return the compute capabilities that ENGINE_CUDA_ARCHS names; CompileError if one cannot be compiled for."""
    found = set()
    for word in re.split(r"[;,\s]+", named.strip("; ,")):
        number = re.fullmatch(r"(\d+)\.?(\d)", word)
        if number is None or int(number[1] + number[2]) not in known:
            raise CompileError(
                f"ENGINE_CUDA_ARCHS={named}: '{word}' is none that the kernels can be compiled for here: "
                f"{', '.join(map(str, known))}; "
                'name some with semicolons between, as in "80;90"'
            )
        found.add(int(number[1] + number[2]))
    return tuple(sorted(found))


def output(program: str, *arguments: str) -> str:
    """Return what a program prints; nothing where it does not exist or fails."""
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else done.stdout


def for_host(flags: list[str]) -> list[str]:
    """Return flags of the C++ compiler as nvcc takes them."""
    return [f"-Xcompiler={flag}".replace(",", "\\,") for flag in flags]


def python_headers() -> list[str]:
    """Return the flags that find the headers of Python and pybind11, a build requirement."""
    import pybind11

    return [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]


def quote(flags: "list[str] | tuple[str, ...]") -> str:
    """Return flags as one line that ninja and then the shell read back as they are."""
    return shlex.join(flags).replace("$", "$$")


SOURCES = sorted(path for path in Path("csrc").rglob("*") if path.suffix in (".cpp", ".cu", ".h"))


def sources_in(folder: str, *others: str) -> list[str]:
    """Return the sources below a folder of csrc/, and others."""
    return [*others, *(str(path) for path in SOURCES if Path("csrc", folder) in path.parents and path.suffix != ".h")]


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
            sources=sources_in(
                "cpu",
                *(str(path) for path in sorted(Path("csrc").glob("*bindings.cpp")) if path.name != "cuda_bindings.cpp"),
                "csrc/convolution.cpp",
            ),
            depends=list(map(str, SOURCES)),  # what puts all of them in a source distribution
        ),
        Extension(CUDA, sources=sources_in("cuda", "csrc/cuda_bindings.cpp", "csrc/convolution.cpp")),
    ],
    cmdclass={"build_ext": NinjaBuild},
)
