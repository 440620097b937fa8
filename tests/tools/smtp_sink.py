"""A mail server that appends each message it accepts to a file, as a line of JSON.

Prints its port on 127.0.0.1. With a certificate it insists on STARTTLS; with a user name it insists on that name and
its password.
"""

import argparse
import asyncio
import email
import email.policy
import json
import ssl

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("file")
parser.add_argument("--cert")
parser.add_argument("--key")
parser.add_argument("--username")
parser.add_argument("--password")
args = parser.parse_args()


class Keep:
    async def handle_DATA(self, server, session, envelope):
        message = email.message_from_bytes(envelope.original_content, policy=email.policy.default)
        line = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "tls": session.ssl is not None,
            "user": session.auth_data.login.decode() if session.auth_data else None,
            "headers": {name.lower(): value for name, value in message.items()},
            "body": message.get_content(),
        }
        with open(args.file, "a") as file:
            file.write(json.dumps(line) + "\n")
        return "250 OK"


def authenticate(server, session, envelope, mechanism, data):
    known = isinstance(data, LoginPassword) and data == LoginPassword(args.username.encode(), args.password.encode())
    return AuthResult(success=known, auth_data=data if known else None)


def settings():
    given = {}
    if args.cert:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(args.cert, args.key)
        given |= {"tls_context": context, "require_starttls": True}
    if args.username:
        given |= {"authenticator": authenticate, "auth_required": True}
    return given


async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(Keep(), enable_SMTPUTF8=True, **settings()), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
