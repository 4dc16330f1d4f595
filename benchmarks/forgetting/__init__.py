"""Measure forgetting: streams of tasks, Strata's method and every baseline, through the code that serves."""
