"""A misspelt key gets a message with the nearest key."""

import random
import string

from ssl_zoo.config import compose
from ssl_zoo.config.keys import keys_of, unknown_key


def one_edit(word, rng):
    place = rng.randrange(len(word))
    letter = rng.choice(string.ascii_lowercase + "_")
    edits = [
        word[:place] + word[place + 1 :],
        word[:place] + letter + word[place:],
        word[:place] + letter + word[place + 1 :],
    ]
    if place + 1 < len(word):
        edits.append(word[:place] + word[place + 1] + word[place] + word[place + 2 :])
    return rng.choice(edits)


def test_a_key_with_one_edit_is_recognised_in_95_of_100_cases(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("defaults: [method: ijepa, backbone: vit_tiny, data: scenes]\n")
    values = compose(recipe).values
    keys = [key.name for key in keys_of(values)]
    rng = random.Random(0)
    cases = [(key, one_edit(key, rng)) for key in keys for _ in range(2)]
    cases = [(key, edited) for key, edited in cases if edited not in keys]
    right = [f"did you mean {key}?" in unknown_key(edited, values) for key, edited in cases]
    print(f"{sum(right)} of {len(right)}")
    assert sum(right) >= 0.95 * len(right)


def test_an_abbreviation_and_its_words_find_each_other(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("defaults: [method: ijepa, backbone: vit_tiny, data: scenes]\n")
    values = compose(recipe).values
    assert "did you mean optim.lr?" in unknown_key("optim.learning_rate", values)
    assert "did you mean trainer.batch_size?" in unknown_key("trainer.bs", values)
