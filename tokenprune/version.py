"""The version of the package, in one place that can be read without importing torch."""

VERSION = "0.1.0"
