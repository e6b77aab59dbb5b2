PYTHON ?= python
# Names the raw results.
HARDWARE ?= cpu

.PHONY: check test test-browser fuzz soak audit docs lint bench bench-gpu

check: lint test  ## everything a change must pass

lint:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest

test-browser:  ## MLflow's page as one sees it; needs chromium and chromedriver
	$(PYTHON) -m pytest -n 0 -m browser tests/browser

bench:  ## what benchmarks/RESULTS.md reports; needs pip install -e ".[bench]" and a quiet machine
	$(PYTHON) benchmarks/augmentation.py --name augmentation-$(HARDWARE)
	$(PYTHON) benchmarks/startup.py --name startup-$(HARDWARE)
	$(PYTHON) benchmarks/scaling.py --name scaling-$(HARDWARE)
	$(PYTHON) benchmarks/throughput.py resnet34 --compile --name throughput-resnet34-$(HARDWARE)
	$(PYTHON) benchmarks/throughput.py tf_efficientnet_lite0 --name throughput-lite0-$(HARDWARE)
	$(PYTHON) benchmarks/throughput.py convnext_tiny --name throughput-convnext_tiny-$(HARDWARE)
	$(PYTHON) benchmarks/throughput.py vit_small_patch16_224 --name throughput-vit_small-$(HARDWARE)

bench-gpu:  ## one GPU, twenty minutes at most; the same again measures what the parts lack
	-$(PYTHON) benchmarks/gpu.py --part A
	-timeout 240 $(PYTHON) -m pytest -n 0 -m gpu
	-$(PYTHON) benchmarks/gpu.py --part B
	-$(PYTHON) benchmarks/gpu.py --part C
	-timeout 240 $(PYTHON) benchmarks/throughput.py resnet34 --only epoch --batch 32 --images 480 --compile --name epochs-resnet34-gpu
	$(PYTHON) benchmarks/gpu.py --table

fuzz:  ## words and files as nobody means them; MINUTES=60 for each of three tests
	SEGSWEEP_FUZZ=$(or $(MINUTES),1) $(PYTHON) -m pytest -n 0 -m fuzz tests/fuzz -s

docs:  ## a site of docs/ in outputs/docs/
	$(PYTHON) .ci/reference.py
	$(PYTHON) -m pip install --quiet sphinx myst-parser furo
	$(PYTHON) -m sphinx --quiet --fail-on-warning docs outputs/docs

soak:  ## kills, full disks, servers that hang, clocks that jump: what is lost; MINUTES=600 for a night
	$(PYTHON) benchmarks/soak.py --minutes $(or $(MINUTES),10)

audit:  ## known security holes of what is installed, and of what pyproject.toml allows
	-$(PYTHON) -m pip install --quiet pip-audit
	$(PYTHON) .ci/audit.py
