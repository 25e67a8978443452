"""What the code answers to some hundred questions: a change of structure must change no answer."""
