"""Read a TensorFlow checkpoint in a separate process and write its variables to a safetensors file.

TensorFlow can hang in a process that also has torch or pyarrow (tensorflow issues 60389 and 99464).
Run as `python -m scratchlm.formats.tensorflow_reader PREFIX OUTPUT.safetensors`.
"""

import os
import sys

from scratchlm.run.watchdog import die_with_parent

REFUSED = 2  # exit status if the last line of standard error is a UserError's sentence


def main(prefix: str, output: str) -> None:
    """Write every variable of the checkpoint `prefix` (model.ckpt for model.ckpt.index) to `output`."""
    die_with_parent()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["TF_USE_LEGACY_KERAS"] = "1"  # avoid Keras 3, which imports scikit-learn and matplotlib
    import numpy as np
    import tensorflow as tf
    from safetensors.numpy import save_file

    try:
        reader = tf.train.load_checkpoint(prefix)
        names = sorted(reader.get_variable_to_shape_map())
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        _refuse(f"{prefix}.index cannot be read as a TensorFlow checkpoint ({_first_line(error)}); fetch it again")
    arrays = {}
    for name in names:
        try:
            arrays[name] = np.asarray(reader.get_tensor(name))
        except (tf.errors.OpError, ValueError, RuntimeError, IndexError) as error:  # IndexError: the file ends too soon
            _refuse(
                f"{prefix}: tensor {name} is damaged ({_first_line(error)}); fetch the checkpoint's data file again"
            )
        if arrays[name].dtype.hasobject or arrays[name].dtype.kind == "S":
            _refuse(
                f"{prefix}: tensor {name} holds text, which belongs to no part of a GPT-2; fetch the checkpoint again"
            )
    save_file(arrays, output)


def _refuse(sentence: str) -> None:
    print(sentence, file=sys.stderr)
    sys.exit(REFUSED)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
