"""Tiny random models of model types, built from configs alone: one file for each kind."""
