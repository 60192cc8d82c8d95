"""Package metadata and grafts; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "ssl_zoo" / "__init__.py").read_text(), re.MULTILINE)[1]

# Top-level folders that install *inside* the package, so that a wheel owns one name in site-packages.
GRAFTS = {"ssl_zoo.methods": "methods", "ssl_zoo.configs": "configs", "ssl_zoo.tools": "tools"}
GRAFTED = [f"{name}.{inner}" for name, folder in GRAFTS.items() for inner in find_packages(str(ROOT / folder)) if inner]

# The documentation as a site (make docs), which a test builds as well; versions for Python 3.10 were not tried.
DOCS = ["mkdocs>=1.6.1,<2", "mkdocs-material>=9.8,<10", "mkdocstrings-python>=2.0.11", "latex2mathml>=3.78"]
DOCS = [f"{requirement}; python_version >= '3.11'" for requirement in DOCS]

setup(
    name="ssl-zoo",
    version=VERSION,
    description="Self-supervised vision methods on one engine: a method is one file, a comparison is a config swap.",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=[*find_packages(include=["ssl_zoo", "ssl_zoo.*"]), *GRAFTS, *GRAFTED],
    package_dir=GRAFTS,
    package_data={"ssl_zoo.configs": ["**/*.yaml"]},
    include_package_data=False,
    entry_points={
        "console_scripts": [
            "ssl-zoo-train = ssl_zoo.tools.train_net:main",
            "ssl-zoo-eval = ssl_zoo.tools.eval_net:main",
            "ssl-zoo-benchmark = ssl_zoo.tools.benchmark:main",
            "ssl-zoo-make-shards = ssl_zoo.tools.make_shards:main",
            "ssl-zoo-channel-stats = ssl_zoo.tools.channel_stats:main",
            "ssl-zoo-submit = ssl_zoo.tools.submit:main",
            "ssl-zoo-compare = ssl_zoo.tools.compare:main",
            "ssl-zoo-inject-faults = ssl_zoo.tools.inject_faults:main",
            "ssl-zoo-status = ssl_zoo.tools.status:main",
            "ssl-zoo-list = ssl_zoo.tools.list:main",
            "ssl-zoo-verify-golden = ssl_zoo.tools.verify_golden:main",
            "ssl-zoo-train-decoder = ssl_zoo.tools.train_decoder:main",
            "ssl-zoo-visualize = ssl_zoo.tools.visualize:main",
            "ssl-zoo-export-weights = ssl_zoo.tools.export_weights:main",
            "ssl-zoo-import-weights = ssl_zoo.tools.import_weights:main",
        ]
    },
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "numpy>=1.26",
        "timm>=1.0.22,<2",
        "hydra-core>=1.3.2,<1.4",
        "omegaconf>=2.3,<2.4",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.10",
        "huggingface_hub>=1.0",  # of timm; downloads of published weights
        "tqdm>=4.60",  # of both; bars of downloads
        "webdataset>=1.0.2",
        "braceexpand>=0.1.7",
        "simplejpeg>=1.7.2",
        "pillow>=10.0",
        "tifffile>=2024.8.10",
        "tensorboard>=2.16.2",
        "rich>=13.0",
        "jaxtyping>=0.3.1",
        "safetensors>=0.4.3",
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "matplotlib>=3.8",
    ],
    extras_require={
        "slurm": ["submitit>=1.5"],
        "hf": ["transformers>=5.0"],  # folders of Hugging Face: verification of exports, tests of both directions
        # Libraries that tools/benchmark.py compares with; transformers is in hf, timm required anyway.
        "lightly": ["lightly[timm]>=1.6"],
        "stable-pretraining": ["stable-pretraining>=0.1.8"],
        "onnx": ["onnx>=1.18", "onnxscript>=0.5", "onnxruntime>=1.20"],  # export, and its verification
        "wandb": ["wandb>=0.31"],  # a logger
        "tiff": ["imagecodecs>=2024.6.1"],  # TIFF of many bands or 16-bit colour with LZW compression
        "docs": DOCS,
        "test": [
            *DOCS,
            "submitit>=1.5",
            "transformers>=5.0",
            "onnx>=1.18",
            "onnxscript>=0.5",
            "onnxruntime>=1.20",
            "wandb>=0.31",
            "pytest>=8.0",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "beartype>=0.18",
            "ruff>=0.9",
            "build>=1.2",
            "setuptools>=77",  # the packaging test builds without network, hence in this environment
        ],
    },
)
