.PHONY: demo test lint

demo:  ## learn a subject on the embedded tiny model
	python3 tools/task.py demo $(ARGS)

test:  ## run the default test suite
	python3 tools/task.py test $(ARGS)

lint:  ## ruff and mypy
	python3 tools/task.py lint
