"""From a problem's text to the model's input: the prompt template, wrapped in the task's chat template if it has one."""

from __future__ import annotations

import jinja2

from pipeline.config.tasks import MathTask
from pipeline.errors import PriorlabError

_TOKENS = ("eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_UNSET = {name: jinja2.StrictUndefined(f"say what {name} is: task.special_tokens={{{name}: <TEXT>}}") for name in _TOKENS}
"""An error where a template writes one; not where it only mentions it, as for turns of an assistant."""


def render_prompt(config: MathTask, problem: str) -> str:
    """Chat templates are rendered by transformers; special tokens in them are those of `task.special_tokens`.

    Raises `PriorlabError` if the template cannot be rendered.
    """
    text = config.prompt.replace("{problem}", problem)
    if config.chat_template is None:
        return text
    from transformers.utils.chat_template_utils import render_jinja_template  # slow, and most tasks have no template

    messages = [{"role": "system", "content": config.system}] if config.system is not None else []
    messages.append({"role": "user", "content": text})
    tokens = _UNSET | {"bos_token": ""} | config.special_tokens  # our tokenizers put a start before each prompt
    try:
        (prompt,), _ = render_jinja_template([messages], chat_template=config.chat_template, add_generation_prompt=True, **tokens)
    except Exception as error:  # of jinja2, and whatever the template's own expressions raise
        raise PriorlabError(
            f"task.chat_template of task {config.name!r} cannot be rendered: {type(error).__name__}: {error}"
        ) from error
    return str(prompt)
