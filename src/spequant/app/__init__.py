"""The application on top of the library: recipes, runs, studies, benchmarks, the command line.

The library imports none of it.
"""
