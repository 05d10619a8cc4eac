"""Rewards for reinforcement learning: by the reference judge, or by a reward model."""

from collections.abc import Mapping, Sequence

from scratchlm.data.tokenizer import Tokenizer
from scratchlm.judge.protocol import MAX_SCORE
from scratchlm.judge.reference import ReferenceJudge
from scratchlm.model.generate import Generation
from scratchlm.model.reward import RewardModel
from scratchlm.tasks.generation import Rows
from scratchlm.tasks.rollouts import Reward
from scratchlm.training.reward import rewards


def reward_of(model: RewardModel | None, tokenizer: Tokenizer, unfinished_reward: float) -> Reward:
    """Return the function that rewards responses: with a reward model's number, or else the reference judge's score.

    The score becomes a number from 0 to 1. A response without the end token gets `unfinished_reward` instead.
    """
    judge = ReferenceJudge()

    def rated(row: Mapping[str, str], answer: Generation) -> float:
        score = judge.score(row, tokenizer.decode(answer.token_ids).strip()).score
        assert score is not None
        return score / MAX_SCORE

    def reward(rows: Rows, answers: Sequence[Generation]) -> list[float]:
        pairs = list(zip(rows, answers, strict=True))
        if model:
            given = rewards(model, [[*row["prompt_token_ids"], *answer.token_ids] for row, answer in pairs]).tolist()
        else:
            given = [rated(*pair) for pair in pairs]
        return [r if answer.finished else unfinished_reward for r, answer in zip(given, answers, strict=True)]

    return reward
