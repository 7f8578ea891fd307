"""Everything about the package stands in `settings.ini`; edit there, not here."""

import re
import sys
import sysconfig
from configparser import ConfigParser
from pathlib import Path

import setuptools
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
STATUSES = [
    "1 - Planning",
    "2 - Pre-Alpha",
    "3 - Alpha",
    "4 - Beta",
    "5 - Production/Stable",
]
PYTHONS = ["3.11", "3.12", "3.13"]


def read_settings():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def long_description(cfg):
    """The README with absolute links, because a package index serves the text alone."""
    raw = "https://raw.githubusercontent.com/{user}/{repo}/{branch}/".format(**cfg)
    blob = "{git_url}/blob/{branch}/".format(**cfg)
    relative = r"(?![a-z]+:|#|/)"
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    text = re.sub(rf"(!\[[^\]]*\]\(){relative}", rf"\g<1>{raw}", text)
    text = re.sub(rf"(<img [^>]*src=\"){relative}", rf"\g<1>{raw}", text)
    return re.sub(rf"((?<!\\)\]\(){relative}", rf"\g<1>{blob}", text)


def classifiers(cfg):
    supported = PYTHONS[PYTHONS.index(cfg["min_python"]) :]
    return [
        f"Development Status :: {STATUSES[int(cfg['status']) - 1]}",
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        *(f"Programming Language :: Python :: {version}" for version in supported),
    ]


def extension(name, stable_abi):
    """A compiled part. Without a compiler the package is installed all the same, and does without.

    Of -ffast-math only what vectorised minima need: with all of it, loading the extension would
    change how the whole process treats tiny numbers.
    """
    gcc = [
        "-O3",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffinite-math-only",
        "-fno-signed-zeros",
    ]
    return setuptools.Extension(
        name,
        [f"{name.replace('.', '/')}.c"],
        depends=["git_rebasin/_native.h"],
        extra_compile_args=["/O2"] if sys.platform == "win32" else gcc,
        define_macros=[("Py_LIMITED_API", "0x030B0000")] if stable_abi else [],
        py_limited_api=stable_abi,
        optional=True,
    )


class BuildPython(build_py):
    """Without nbdev's index, a sixth of the wheel, which only the site of a clone is made with.

    nbdev passes over entry points that lead nowhere, so that ours may stay.
    """

    def find_package_modules(self, package, package_dir):
        modules = super().find_package_modules(package, package_dir)
        return [module for module in modules if module[1] != "_modidx"]


cfg = read_settings()
experiments = cfg["experiments_requirements"].split()
formats = cfg["formats_requirements"].split()
stable_abi = not sysconfig.get_config_var("Py_GIL_DISABLED")  # one build for all versions of Python
lib = cfg["lib_path"]

setuptools.setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=long_description(cfg),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license=cfg["license"].upper(),
    url=cfg["git_url"],
    project_urls={"Documentation": f"{cfg['doc_host']}{cfg['doc_baseurl']}"},
    keywords=cfg["keywords"].split(),
    classifiers=classifiers(cfg),
    python_requires=f">={cfg['min_python']}",
    packages=setuptools.find_packages(include=[lib, f"{lib}.*"]),
    include_package_data=False,  # or setuptools takes the folders of data for packages
    package_data={lib: ["py.typed", "zoo/data_files/**"]},
    cmdclass={"build_py": BuildPython},
    ext_modules=[
        extension(f"{lib}.{name}", stable_abi)
        for name in ("_halves", "matching._assignment", "symmetry._gather")
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if stable_abi else {},
    install_requires=cfg["requirements"].split(),
    extras_require={
        "experiments": experiments,
        "formats": formats,
        "torch": cfg["torch_requirements"].split(),
        "dev": [*experiments, *formats, *cfg["dev_requirements"].split()],
    },
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{lib}={lib}._modidx:d"],
    },
)
