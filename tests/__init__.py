"""The tests: core, backend and distillation mirror the code; system starts real servers."""
