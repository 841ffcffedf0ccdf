# Every target sets itself up: a virtual environment in .venv with the package and its extras.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
ACCELERATE_CONFIG ?= configuration/accelerate/$(shell command -v nvidia-smi >/dev/null 2>&1 && echo single_gpu || echo cpu).yaml
OUTPUT ?= outputs/demo
ARGS ?=
# Of `make gpu`: which parts, where the results go, and the Python that what `make gpu-wheels` fetches is for.
PARTS ?= a,b,c,d,e,f,g,h
OUT ?= outputs/gpu
GPU_PYTHON ?= 3.12

.PHONY: help train train-classification demo-weights test test-slow test-signals test-app conformance bench strength \
	graphs graph-anomalies gpu gpu-wheels \
	docs notebooks dist lint format clean
.DEFAULT_GOAL := help

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# One thread: the model is small, and threads that share a core with another program slow each step a hundredfold.
train: $(INSTALLED) ## Train the masked autoencoder on embedded photographs (10 to 30 CPU minutes)
	$(BIN)/accelerate launch --quiet --config_file $(ACCELERATE_CONFIG) --num_cpu_threads_per_process 1 \
		scripts/train_masked_image_modeling.py --config configuration/training/demo.yaml --output_dir $(OUTPUT) --overwrite_output_dir $(ARGS)

train-classification: $(INSTALLED) ## Train a classifier of the embedded photographs' crops (a few CPU minutes)
	$(BIN)/accelerate launch --quiet --config_file $(ACCELERATE_CONFIG) --num_cpu_threads_per_process 1 \
		scripts/train_image_classification.py --output_dir $(OUTPUT)_classification --overwrite_output_dir $(ARGS)

# The weights that come with the package; commit what it changes.
demo-weights: OUTPUT = outputs/demo_weights
demo-weights: train ## Train the weights that come with the package, and put them in their place with their card
	$(BIN)/python scripts/install_demo_weights.py $(OUTPUT)

test: $(INSTALLED) ## Run the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# transformers imports torchao wherever it is installed, for a second and with warnings: it stays out of .venv.
.torchao: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $@ 'torchao>=0.18'
	@touch $@

test-slow: .venv/.docs .torchao ## Run the tests that take minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --ignore tests/test_signals.py $(ARGS)
	PYTHONPATH=.torchao OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_ecosystem_quantization.py tests/test_ecosystem_docs.py

test-signals: $(INSTALLED) ## Send signals to real launchers at SIGNAL_MOMENTS (20) random moments each: about half an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -s tests/test_signals.py $(ARGS)

# gradio and playwright stay out of .venv, for the other tests do without them.
.app: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --target $@ 'gradio>=6' 'playwright>=1.50'
	@touch $@

test-app: .app ## Try the app in a real browser (Chromium, which has to be installed)
	PYTHONPATH=.app OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m app tests/test_app.py $(ARGS)

conformance: $(INSTALLED) ## Run transformers' own common tests on the models (downloads their source)
	OMP_NUM_THREADS=1 $(BIN)/python tests/conformance/run.py $(ARGS)

bench: $(INSTALLED) ## Measure time and memory of every attention backend; ARGS=--quick for a minute's run
	$(BIN)/python benchmarks/run.py $(ARGS)

strength: $(INSTALLED) ## Compare the models with transformers of their size (hours; goes on where it stopped)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/strength.py $(ARGS)

graphs: $(INSTALLED) ## Cross-validate the classification of graphs (goes on where it stopped)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/graphs.py $(ARGS)

graph-anomalies: $(INSTALLED) ## Find injected anomalies in molecules (goes on where it stopped)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/graph_anomalies.py $(ARGS)

# No environment of its own: a machine with a GPU often has no network, and its torch is the one to be measured.
gpu: ## Prove and measure all of it on a CUDA device, with what PYTHON has installed; PARTS=a,b for some parts
	@PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(PYTHON) scripts/gpu_check.py --parts $(PARTS) --output_dir $(OUT) \
		$(if $(wildcard .gpu_wheels),--wheels .gpu_wheels) $(ARGS)

gpu-wheels: ## Fetch, where there is a network, what `make gpu` would like to find beside torch and transformers
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
		--python-version $(GPU_PYTHON) --dest .gpu_wheels \
		datasets dill multiprocess evaluate ebt_flash_attention==0.2.0 jvp_flash_attention==0.14.0

# Sphinx is of use to nobody else: its own stamp keeps it out of what the tests need.
.venv/.docs: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

docs: .venv/.docs ## Build the documentation site into build/docs; open its index.html
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs build/docs $(ARGS)
	@echo "site: build/docs/index.html"

notebooks: $(INSTALLED) ## Run the notebooks and store what they show
	OMP_NUM_THREADS=1 $(BIN)/python notebooks/execute.py

dist: $(INSTALLED) ## Build sdist and wheel into dist/, and check them
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

lint: $(INSTALLED) ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment and everything that was made
	rm -rf .venv .torchao .app .conformance .gpu_wheels outputs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
