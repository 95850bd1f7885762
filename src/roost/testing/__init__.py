"""Fakes of the seams, shipped for whoever tests against roost."""
