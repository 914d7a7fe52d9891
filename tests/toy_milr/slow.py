"""A critic that needs no model and much time, and says which process judged."""

import os
import signal
import time

import numpy as np

from milr.drafts import Score

NAME = "slow"
SUMMARY = "takes its time, for tests"
NEEDS_BACKBONE = False


class Slow:
    name = NAME

    def score(self, images, tasks):
        if any(task.prompt == "die" for task in tasks):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(os.environ.get("TOY_SECONDS", "0")) * len(images))
        return [Score(float(np.asarray(image).mean() / 255), reason=str(os.getpid())) for image in images]


def make(backbone):
    return Slow()
