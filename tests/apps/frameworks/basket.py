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


def refund():
    try:
        return price("saw")
    except ValueError:
        raise CheckoutFailed("no refund for a saw") from None


def count():
    error = ValueError("four hammers\nand a nail")
    error.add_note("counted twice")
    error.add_note("by hand,\non Friday")
    raise error


def deliver():
    failed = []
    for attempt in (price, checkout_of, reserve_of):
        try:
            attempt("drill")
        except Exception as error:
            failed.append(error)
    error = ExceptionGroup("not delivered", failed)
    error.add_note("tried by truck")
    raise error


def checkout_of(article):
    checkout()


def reserve_of(article):
    raise OutOfStock(article)
