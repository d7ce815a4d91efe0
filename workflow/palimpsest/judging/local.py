"""A judge in the process: a causal language model of the hub, asked in greedy batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from palimpsest.config import Judge
from palimpsest.judging.prompts import messages


class LocalJudge:
    """A model with its tokenizer, whose chat template writes the conversation."""

    def __init__(self, judge: Judge) -> None:
        if not judge.revision and not (Path(judge.model) / "config.json").is_file():
            raise ValueError(
                f"{judge.model}: no model here (config.json is missing). Give the directory of a "
                "saved model as `model`, or a hub id together with a `revision`"
            )
        torch.set_num_threads(judge.resources.cores)
        source = {"pretrained_model_name_or_path": judge.model, "revision": judge.revision}
        self.judge = judge
        self.tokenizer = AutoTokenizer.from_pretrained(**source, padding_side="left")
        if self.tokenizer.chat_template is None:
            raise ValueError(f"{judge.model}: its tokenizer has no chat template; it is no judge")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model = AutoModelForCausalLM.from_pretrained(**source, dtype="auto", use_safetensors=True)
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    @torch.inference_mode()
    def replies(self, prompts: list[str]) -> Iterator[tuple[str, str]]:
        """Yield each prompt with its reply, prompts of similar length together."""
        batch = self.judge.asking.concurrency
        prompts = sorted(prompts, key=len, reverse=True)
        for start in range(0, len(prompts), batch):
            asked = prompts[start : start + batch]
            yield from zip(asked, self._answer(asked), strict=True)

    def _answer(self, prompts: list[str]) -> list[str]:
        inputs = self.tokenizer.apply_chat_template(
            [messages(prompt) for prompt in prompts],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        ).to(self.model.device)
        tokens_BL = self.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=self.judge.sampling.repetition_penalty,
            max_new_tokens=self.judge.sampling.max_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        new_BL = tokens_BL[:, inputs["input_ids"].shape[1] :]
        return self.tokenizer.batch_decode(new_BL, skip_special_tokens=True)
