"""Train the miniature models on drawings, from a seed, and measure them on drawings of their own.

Their weights are part of the package, so this is needed only to change them: four to five hours on
two cores.

    python jobs/train_miniature.py                           all of them, then the model card
    python jobs/train_miniature.py --only captioner card     one of them, then the model card
"""

import sys

from ray_reid.miniature.trainers.everything import main

if __name__ == "__main__":
    sys.exit(main(__doc__))
