"""Makes a tuner known to PEFT, whose list of methods is a closed enum."""

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType


def add_peft_type(name: str) -> PeftType:
    """The member ``name`` (upper case, also its value) of PEFT's ``PeftType``, added if it is not there.

    Raises ImportError if this PEFT's enum cannot be extended so.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    try:
        member = str.__new__(PeftType, name)
        member._name_ = member._value_ = name
        setattr(PeftType, name, member)  # before the maps: EnumType refuses to assign a name that it knows
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
        complete = PeftType(name) is PeftType[name] is getattr(PeftType, name) is list(PeftType)[-1] is member
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise ImportError(_changed(name)) from error
    if not complete:
        raise ImportError(_changed(name))
    return member


def _changed(name: str) -> str:
    from peft import __version__

    return f"petx cannot add {name} to PeftType of peft {__version__}, whose enum changed; petx was made for peft 0.21"


def register_tuner(name: str, config_class: type[PeftConfig], model_class: type[BaseTuner]) -> None:
    """Register tuner ``name`` (lower case) with PEFT; its parameters are found by the prefix ``name_``."""
    if not hasattr(BaseTuner, "_remove_adapter_name_from_key"):
        from peft import __version__

        raise ImportError(f"petx's tuners need peft >= 0.21, which lets a tuner name its saved keys; got {__version__}")
    add_peft_type(name.upper())
    register_peft_method(name=name, config_cls=config_class, model_cls=model_class)
