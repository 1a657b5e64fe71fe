"""From a problem's text to the model's input: the prompt template, wrapped in the task's chat template if it has one."""

from __future__ import annotations

from typing import NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.config.tasks import MathTask
from pipeline.errors import PriorlabError


def render_prompt(config: MathTask, problem: str) -> str:
    """Renders chat templates as transformers does: sandboxed, blocks trimmed, `messages` and `add_generation_prompt` given."""
    text = config.prompt.replace("{problem}", problem)
    if config.chat_template is None:
        return text
    messages = [{"role": "system", "content": config.system}] if config.system is not None else []
    messages.append({"role": "user", "content": text})
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.globals["raise_exception"] = _refuse
    try:
        return environment.from_string(config.chat_template).render(messages=messages, add_generation_prompt=True)
    except jinja2.TemplateError as error:
        raise PriorlabError(f"task.chat_template of task {config.name!r} cannot be rendered: {error}") from error


def _refuse(message: str) -> NoReturn:
    """What templates call when given a conversation they do not support."""
    raise jinja2.TemplateError(message)
