"""An account for the emulated AWS, and what CloudFormation would make of parts of a template."""

import fnmatch
from collections.abc import Mapping

REGION, ACCOUNT = "eu-central-1", "123456789012"
BUCKET = f"slml-{ACCOUNT}-{REGION}"


def filled(part: object) -> object:
    """A part of the template with its placeholders filled in."""
    if isinstance(part, dict) and set(part) == {"Fn::Sub"}:
        text = part["Fn::Sub"]
        for name, value in {"StackName": "slml", "AccountId": ACCOUNT, "Region": REGION, "Partition": "aws"}.items():
            text = text.replace(f"${{AWS::{name}}}", value)
        return text
    if isinstance(part, dict):
        return {key: filled(value) for key, value in part.items()}
    return [filled(one) for one in part] if isinstance(part, list | tuple) else part


def holds(condition: Mapping[str, Mapping[str, object]], context: Mapping[str, str]) -> bool:
    """Whether a condition is met, as IAM means it: a key that is not there fails, unless the operator says IfExists."""
    for operator, wanted in condition.items():
        for key, patterns in wanted.items():
            if key not in context:
                if operator.endswith("IfExists"):
                    continue
                return False
            patterns = patterns if isinstance(patterns, list) else [patterns]
            like = fnmatch.fnmatchcase if operator.startswith("StringLike") else str.__eq__
            assert operator.removesuffix("IfExists") in ("StringLike", "StringEquals")
            if not any(like(context[key], pattern) for pattern in patterns):
                return False
    return True
