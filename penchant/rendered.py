"""Conversations that a client has rendered already, cut into prompt and response as the chat template would have.

Trainers send a reward server one string a conversation: prompt and answer behind each other, rendered by the policy's
chat template, with or without the end of turn. Cut here, it gives the very tokens that prompt and response give apart.
"""

from __future__ import annotations

from penchant.chat import Chat
from penchant.errors import InputError

PROBE = "Penchant"


class Rendered:
    """Cuts rendered conversations, in the format of one chat template.

    - With a template the response begins behind the last place where a user's turn ends and an answer starts; a prompt
      that the client sends as well says where that is for certain. A prompt that is not in the template's format is
      plain text: prompt and response then go through the template.
    - Without one nothing but the prompt can say it.
    - Padding before and behind is dropped, a BOS that the client cut off is put back, one too many is not read.
    - Whatever ends the response is replaced by the template's own end of turn; an answer cut short gets it too.
      An empty one, which policies do give, is that end alone.
    """

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        tok = chat.tokenizer
        self.start = self.closing = self._opening = ""
        if chat.has_template:
            before, after = chat.render(PROBE, PROBE)
            self.start = before.rpartition(PROBE)[2]
            self.closing = after.rpartition(PROBE)[2]
            self._opening = tok.bos_token if tok.bos_token and before.startswith(tok.bos_token) else ""
        self._bos: str = tok.bos_token or ""
        self._pad: str = tok.pad_token if tok.pad_token and tok.pad_token != tok.bos_token else ""
        ends = filter(None, tok.convert_ids_to_tokens(sorted(chat.ends)))
        self._ends = tuple(filter(None, (self.closing.rstrip(), *ends)))  # the closing first: it may begin with a space

    def cut(self, text: str, prompt: str | None, what: str) -> tuple[str, str]:
        """Rendered prompt and response of `text`, as `Chat.render` gives them; errors call it `what`.

        Raises InputError where the text cannot be cut.
        """
        text = self._cleaned(text)
        if prompt is not None:
            prompt = self._cleaned(prompt)
            if text.startswith(prompt) and prompt:
                if self.start and self.start not in prompt:
                    return self.chat.render(prompt, self._response(text[len(prompt) :]))
                at = prompt.rfind(self.start) + len(self.start) if self.start else len(prompt)
                return self._opened(text[:at]), self._response(text[at:]) + self.closing
        if not self.start:
            raise InputError(
                f"{what} is one text, and this model has no chat template that says where its response begins; send the"
                " prompt it begins with as well, or prompt and response apart to /score."
            )
        at = text.rfind(self.start)
        if at < 0:
            raise InputError(
                f"{what} is not in this model's chat format: {self.start!r} does not occur in it; render it with the"
                " reward model's chat template, or send messages, or prompt and response apart to /score."
            )
        at += len(self.start)
        return self._opened(text[:at]), self._response(text[at:]) + self.closing

    def _cleaned(self, text: str) -> str:
        at = 0  # text is sliced once: thousands of pads would else be copied thousands of times
        while self._pad and text.startswith(self._pad, at):
            at += len(self._pad)
        while self._bos and text.startswith(self._bos * 2, at):
            at += len(self._bos)
        text = text[at:]
        if not self._opening and self._bos:
            text = text.removeprefix(self._bos)  # where the template has none; without a template, `Chat` puts it there
        return text

    def _opened(self, text: str) -> str:
        return text if text.startswith(self._opening) else self._opening + text

    def _response(self, text: str) -> str:
        """The text without whatever ends it."""
        kept = len(text)
        while True:
            at = kept
            while at and text[at - 1].isspace():
                at -= 1
            end = next((end for end in self._ends if text.endswith(end, 0, at)), None)
            if end is None:
                return text[:kept]
            kept = at - len(end)
