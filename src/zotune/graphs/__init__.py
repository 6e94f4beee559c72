"""Forwards recorded once and played again: on a GPU one launch in place of thousands.

graph.py     a recording: CUDA's, and its plain twin, which tests run on a CPU
held.py      a step's directions and waiting updates in places that stay
recorder.py  which forwards are recorded, and when a recording may stand for one
"""
