"""What a recipe gives to the machinery all recipes share: settings, data, host, arms, and the words of its report."""

import importlib


class Recipe:
    """A recipe, ``petx.train.NAME.RECIPE``. Methods that raise here are the recipe's to write.

    Class attributes: ``settings`` (dataclass, :class:`petx.train.settings.Common`), ``main_arm`` (its adapter is loaded
    again at the end), ``on_random_host`` (arms that get a small host of their own, of random weights), ``titles`` and
    ``colours`` of the arms, ``columns`` (heading and key of the record, between "share" and the scores),
    ``pretraining`` (words for the screen).
    """

    settings = main_arm = None
    on_random_host = ("scratch", "random-host")
    titles = colours = {}
    columns = ()
    pretraining = "captions and 'what' questions"

    def check_available(self, settings):
        """Raise :class:`UserError` if something the run will read is missing, before any work."""
        raise NotImplementedError

    def load_data(self, settings):
        """:class:`petx.train.data.RunData`."""
        raise NotImplementedError

    def question_item(self, loaded, image, question):
        """An item as :class:`petx.data.tasks.Task` gives them, of one question on an image file, for ``petx predict``.

        Beside what the collator reads it has ``max_target``, and ``unknown``: words the vocabulary lacks.
        """
        raise NotImplementedError

    def small_host(self, settings, run_data):
        """A host of random weights, to be pretrained."""
        raise NotImplementedError

    def pretrained_host(self, settings, run_data):
        """The host that ``settings.host`` names."""
        raise NotImplementedError

    def load_host(self, folder, settings):
        """The host saved in ``folder``, in evaluation mode."""
        raise NotImplementedError

    def load_tokenizer(self, folder):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder)

    def host_in_place(self, settings):
        """Folder or hub name of a host that is used where it lies and not copied into the run; by default none."""

    def prepare_pretraining(self, model, settings):
        """Freeze what pretraining leaves as it is; by default nothing."""

    def build(self, arm, model, settings):
        """``model``, a host loaded anew, made into ``arm``: its trainable parameters have ``requires_grad``."""
        raise NotImplementedError

    def counts(self, model):
        """``trainable`` and ``total`` parameters, and what else the record of an arm should say of the model."""
        raise NotImplementedError

    def learning_rate(self, arm, settings):
        raise NotImplementedError

    def trainer(self, settings):
        """What makes the :class:`petx.train.trainer.PetTrainer` of this recipe, given its arguments."""
        from petx.train.trainer import PetTrainer

        return PetTrainer

    def training_options(self, settings):
        """Further fields of ``Seq2SeqTrainingArguments``."""
        return {}

    def arm_title(self, arm, record, settings):
        return self.titles[arm].format(**vars(settings) | record)

    def notes(self, settings):
        """What belongs beside easy-VQA's table, with fields ``{blind}`` (a score) and ``{seeds}`` (a sentence)."""
        raise NotImplementedError


def find(name):
    """The recipe called ``name``: ``RECIPE`` of the package ``petx.train.NAME``."""
    return importlib.import_module(f"petx.train.{name}").RECIPE
