"""Rewards for reinforcement learning: by the reference judge, or by a reward model."""

from collections.abc import Sequence

from scratchlm.data.tokenizer import Tokenizer
from scratchlm.judge.protocol import MAX_SCORE
from scratchlm.judge.reference import ReferenceJudge
from scratchlm.model.generate import Generation
from scratchlm.model.reward import RewardModel
from scratchlm.tasks.generation import Rows
from scratchlm.tasks.rollouts import Reward
from scratchlm.training.reward import rewards


def reward_of(model: RewardModel | None, tokenizer: Tokenizer, unfinished_reward: float) -> Reward:
    """The reward of a model; of the reference judge without one."""
    return model_reward(model, unfinished_reward) if model else reference_reward(tokenizer, unfinished_reward)


def reference_reward(tokenizer: Tokenizer, unfinished_reward: float) -> Reward:
    """The score of the reference judge, as a number from 0 to 1, for a response that ended by itself."""
    judge = ReferenceJudge()

    def reward(rows: Rows, answers: Sequence[Generation]) -> list[float]:
        found = []
        for row, answer in zip(rows, answers, strict=True):
            score = judge.score(row, tokenizer.decode(answer.token_ids).strip()).score
            assert score is not None
            found.append(score / MAX_SCORE if answer.finished else unfinished_reward)
        return found

    return reward


def model_reward(model: RewardModel, unfinished_reward: float) -> Reward:
    """The reward model's number, for a response that ended by itself."""

    def reward(rows: Rows, answers: Sequence[Generation]) -> list[float]:
        sequences = [[*row["prompt_token_ids"], *a.token_ids] for row, a in zip(rows, answers, strict=True)]
        given = rewards(model, sequences).tolist()
        return [r if answer.finished else unfinished_reward for r, answer in zip(given, answers, strict=True)]

    return reward
