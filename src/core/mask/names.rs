//! Names that tell of secrets or of persons.

/// One of these words alone in a name is enough: `x-api-key`, `userEmail`, `client_ip`.
const WORDS: [&str; 74] = [
    // credentials
    "token",
    "tokens",
    "key",
    "apikey",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "pass",
    "pwd",
    "auth",
    "authorization",
    "authentication",
    "signature",
    "sig",
    "sign",
    "hmac",
    "credential",
    "credentials",
    "session",
    "sessionid",
    "sid",
    "cookie",
    "jwt",
    "bearer",
    "otp",
    "pin",
    "cvv",
    "cvc",
    "nonce",
    // persons
    "email",
    "mail",
    "phone",
    "mobile",
    "msisdn",
    "tel",
    "fax",
    "ip",
    "ipv4",
    "ipv6",
    "addr",
    "address",
    "street",
    "zip",
    "postcode",
    "postal",
    "birthday",
    "birthdate",
    "dob",
    "birth",
    "firstname",
    "lastname",
    "surname",
    "fullname",
    "ssn",
    "passport",
    "iban",
    "card",
    "pan",
    "lat",
    "latitude",
    "lon",
    "lng",
    "longitude",
    "gps",
    // devices, which are persons to an ad network
    "idfa",
    "idfv",
    "gaid",
    "aaid",
    "adid",
    "udid",
    "imei",
    "imsi",
    "mac",
];

/// These give a name away wherever they stand in it, separators or not: `accesstoken`, `useremailhash`.
const PARTS: [&str; 17] = [
    "token",
    "secret",
    "passw",
    "passphrase",
    "credential",
    "signature",
    "authoriz",
    "authentic",
    "apikey",
    "accesskey",
    "privatekey",
    "sessionid",
    "email",
    "phone",
    "msisdn",
    "ipaddr",
    "deviceid",
];

/// Whether what stands under this name is likely a secret or personal. Words are told apart by separators, by
/// capitals and by digits; letter case does not matter.
pub fn is_telling(name: &str) -> bool {
    let squeezed = squeezed(name);
    if PARTS.iter().any(|part| squeezed.contains(part)) || WORDS.contains(&squeezed.as_str()) {
        return true;
    }
    let mut word = String::new();
    let mut last = ' ';
    for c in name.chars().chain([' ']) {
        let begins = !c.is_alphanumeric() || (c.is_uppercase() && !last.is_uppercase());
        if begins {
            if WORDS.contains(&word.as_str()) {
                return true;
            }
            word.clear();
        }
        if c.is_alphanumeric() {
            word.extend(c.to_lowercase());
        }
        last = c;
    }
    false
}

/// Headers whose value says what kind of message it is, never who sends it.
const HARMLESS_HEADERS: [&str; 16] = [
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "host",
    "origin",
    "prefer",
    "traceparent",
    "tracestate",
    "user-agent",
    "x-requested-with",
];

/// Longest value that is too short for a credential worth the name.
const SHORT: usize = 7;

/// Whether a header's value that is written out in the configuration may be shown. Any other one might be a
/// credential, whatever its header is called: partners invent names. Versions, dates and short words may be seen.
pub fn shows_literal(name: &str, value: &str) -> bool {
    if is_telling(name) {
        return false;
    }
    let is_version = |c: char| c.is_ascii_digit() || matches!(c, '.' | '-' | ':' | 'v');
    HARMLESS_HEADERS.iter().any(|h| name.eq_ignore_ascii_case(h))
        || value.len() <= SHORT
        || (value.len() <= 24 && value.chars().all(is_version))
}

/// Letters and digits alone, in lower case: `X-Api_Key` and `xApiKey` are one name.
pub(super) fn squeezed(name: &str) -> String {
    name.chars()
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect()
}
