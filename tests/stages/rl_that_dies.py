"""`python -m stages.rl`, but prompts and responses of each draw go to DRAWS_TO.RANK, and rank 0 kills itself after DIES_AFTER_DRAW.

The kill falls between sampling responses and learning from them, a moment that no file of the stage reveals.
"""

import json
import os
import signal
from pathlib import Path
from typing import Any

from stages.contract import main
from stages.rl.__main__ import run

if __name__ == "__main__":  # verifier workers import this file again
    from stages.rl import dynamic_sampling

    drawn = 0
    draw_groups = dynamic_sampling.draw_groups

    def draw_and_die(*arguments: Any, **named: Any) -> dynamic_sampling.Draw:
        global drawn
        draw = draw_groups(*arguments, **named)
        drawn += 1
        rank = os.environ["RANK"]
        with Path(f"{os.environ['DRAWS_TO']}.{rank}").open("a") as file:
            file.write(json.dumps([[str(group.prompt_ids[0]), group.completion_ids] for group in draw.groups]) + "\n")
        if rank == "0" and drawn == int(os.environ.get("DIES_AFTER_DRAW", "0")):
            os.kill(os.getpid(), signal.SIGKILL)
        return draw

    dynamic_sampling.draw_groups = draw_and_die
    main("rl", run)
