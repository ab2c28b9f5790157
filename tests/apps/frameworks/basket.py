"""What the framework applications do for a living, and how it goes wrong."""


class CheckoutFailed(Exception):
    """Raised from another error; no application handles it."""


class OutOfStock(Exception):
    """The applications handle it."""


def price(article):
    raise ValueError("kaboom")


def total():
    return price("hammer")


def checkout():
    try:
        return price("nail")
    except ValueError as error:
        raise CheckoutFailed("no price for a nail") from error


def reserve():
    raise OutOfStock("hammer")
