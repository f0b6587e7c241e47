"""The version of the package, in one place that can be read without importing torch."""

VERSION = "0.1.0"

# Minor versions of transformers that the sample of the laws was run on: `make test-versions`.
TESTED_TRANSFORMERS = ("5.17", "5.20", "5.23", "5.24")
