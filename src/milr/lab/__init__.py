"""The embedded laboratory: a small world of emoji scenes, its oracle, its model and how that model was trained.

world.py      what exists, layouts, pixels          lexicon.py, language.py   English, both ways
codes.py      the taught codebook                   detector.py               the oracle
curriculum.py prompts, and what is taught wrong     model.py                  the checkpoint
train*.py     the recipe                            measure.py                the model card's numbers
"""
