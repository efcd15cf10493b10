//! A message's content: a string, or parts.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::Value;

use crate::api::field::{Invalid, Path, array, excerpt, object, require, string};
use crate::conversation::ImageSource;

/// A piece of content.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Part {
    Text(String),
    Image(ImageSource),
}

/// Whose content it is: not everybody may say everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaker {
    System,
    User,
    Assistant,
    Tool,
}

/// Reads content. Text of nothing but white space is left out, because the models refuse it as a block of its own; so
/// the result may be empty.
pub(super) fn parts(content: Value, speaker: Speaker, at: &Path<'_>) -> Result<Vec<Part>, Invalid> {
    let mut parts = match content {
        Value::String(text) => vec![Part::Text(text)],
        Value::Array(_) => {
            let items = array(content, at)?.into_iter().enumerate();
            items.map(|(index, item)| part(item, speaker, &at.index(index))).collect::<Result<_, _>>()?
        }
        other => return Err(crate::api::field::wrong_type(&other, "a string or an array of parts", at)),
    };
    parts.retain(|part| !matches!(part, Part::Text(text) if text.trim().is_empty()));
    Ok(parts)
}

fn part(item: Value, speaker: Speaker, at: &Path<'_>) -> Result<Part, Invalid> {
    let mut item = object(item, at)?;
    let kind = string(require(&mut item, "type", at)?, &at.key("type"))?;
    match (kind.as_str(), speaker) {
        ("text", _) => string(require(&mut item, "text", at)?, &at.key("text")).map(Part::Text),
        ("refusal", Speaker::Assistant) => {
            string(require(&mut item, "refusal", at)?, &at.key("refusal")).map(Part::Text)
        }
        ("image_url", Speaker::User | Speaker::Tool) => {
            let holder_at = at.key("image_url");
            let mut holder = object(require(&mut item, "image_url", at)?, &holder_at)?;
            let url_at = holder_at.key("url");
            image(&string(require(&mut holder, "url", &holder_at)?, &url_at)?, &url_at).map(Part::Image)
        }
        ("input_audio" | "file", Speaker::User) => {
            Err(at.key("type").unsupported(format_args!("is '{kind}', which is not supported: send text and images")))
        }
        ("image_url" | "input_audio" | "file" | "refusal", _) => {
            Err(at.key("type").invalid(format_args!("is '{kind}', which has no place in a message of this role")))
        }
        _ => Err(at.key("type").invalid(format_args!("must be 'text' or 'image_url', not '{}'", excerpt(&kind)))),
    }
}

/// A picture's address: `data:` with base64, or `https:`.
fn image(url: &str, at: &Path<'_>) -> Result<ImageSource, Invalid> {
    let scheme = url.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase());
    match scheme.as_deref() {
        Some("data") => inline(&url["data:".len()..], at),
        Some("https") => {
            let rest = &url["https:".len()..];
            let host = rest.strip_prefix("//").and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or_default();
            if host.is_empty() || url.chars().any(|c| c.is_whitespace() || c.is_control()) {
                return Err(at.invalid("is not a valid https: URL"));
            }
            Ok(ImageSource::Url(url.to_owned()))
        }
        Some("http") => Err(at.unsupported("is an http: URL, which is not supported: use https: or a data: URL")),
        _ => Err(at.invalid("must be an https: URL, or a data: URL with base64")),
    }
}

/// The part of a `data:` URL after its scheme.
fn inline(rest: &str, at: &Path<'_>) -> Result<ImageSource, Invalid> {
    let (head, data) = rest.split_once(',').ok_or_else(|| at.invalid("is a data: URL without data"))?;
    let mut head = head.split(';').map(str::trim);
    let declared = head.next().unwrap_or_default().to_ascii_lowercase();
    if !head.any(|word| word.eq_ignore_ascii_case("base64")) {
        return Err(at.invalid("is a data: URL that is not in base64"));
    }
    let declared = match declared.as_str() {
        "image/png" | "image/jpeg" | "image/gif" | "image/webp" => declared,
        "image/jpg" => "image/jpeg".to_owned(),
        other => {
            let other = excerpt(other);
            return Err(at.unsupported(format_args!("must be a PNG, JPEG, GIF or WebP image, not '{other}'")));
        }
    };
    let bytes = BASE64.decode(data).map_err(|error| at.invalid(format_args!("is not valid base64: {error}")))?;
    if bytes.is_empty() {
        return Err(at.invalid("is an image without data"));
    }
    // OpenAI looks at the bytes, the provider at the declared type, and clients mix them up.
    let media_type = sniff(&bytes).map_or(declared, str::to_owned);
    let mut data = data.to_owned();
    while data.len() % 4 != 0 {
        data.push('=');
    }
    Ok(ImageSource::Base64 { media_type, data })
}

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The type of a picture by its first bytes.
fn sniff(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', ..] => Some("image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn url(url: &str) -> Result<ImageSource, String> {
        image(url, &Path::Root.key("url")).map_err(|error| error.message)
    }

    fn base64(media_type: &str, data: &str) -> ImageSource {
        ImageSource::Base64 { media_type: media_type.into(), data: data.into() }
    }

    #[test]
    fn a_picture_is_inline_or_behind_https() {
        assert_eq!(url("data:image/png;base64,AAAA"), Ok(base64("image/png", "AAAA")));
        assert_eq!(url("DATA:image/JPG;base64,AAA"), Ok(base64("image/jpeg", "AAA=")));
        assert_eq!(url("data:image/gif;charset=x;base64,AA=="), Ok(base64("image/gif", "AA==")));
        // The first bytes of a PNG, declared as something else.
        assert_eq!(url("data:image/jpeg;base64,iVBORw0KGgo="), Ok(base64("image/png", "iVBORw0KGgo=")));
        assert_eq!(url("https://a.example/b.png?c"), Ok(ImageSource::Url("https://a.example/b.png?c".into())));
    }

    #[test]
    fn any_other_address_is_refused_by_name() {
        let check = |address: &str, expected: &str| assert_eq!(url(address), Err(expected.to_owned()), "{address}");
        check("http://a/b.png", "'url' is an http: URL, which is not supported: use https: or a data: URL");
        check("file:///etc/passwd", "'url' must be an https: URL, or a data: URL with base64");
        check("/etc/passwd", "'url' must be an https: URL, or a data: URL with base64");
        check("", "'url' must be an https: URL, or a data: URL with base64");
        check("https:///x", "'url' is not a valid https: URL");
        check("https:a", "'url' is not a valid https: URL");
        check("https://a b", "'url' is not a valid https: URL");
        check("data:image/png;base64", "'url' is a data: URL without data");
        check("data:image/png,AAAA", "'url' is a data: URL that is not in base64");
        check("data:image/svg+xml;base64,AAAA", "'url' must be a PNG, JPEG, GIF or WebP image, not 'image/svg+xml'");
        check("data:image/png;base64,", "'url' is an image without data");
        check("data:image/png;base64,A*AA", "'url' is not valid base64: Invalid symbol 42, offset 1.");
    }

    #[test]
    fn white_space_is_left_out_and_other_text_is_not_touched() {
        let at = Path::Root.key("content");
        let read = |value| parts(value, Speaker::User, &at).map_err(|error| error.message);
        assert_eq!(read(json!("  \u{0} x\n")), Ok(vec![Part::Text("  \u{0} x\n".into())]));
        assert_eq!(read(json!([{ "type": "text", "text": " \n" }])), Ok(vec![]));
        assert_eq!(read(json!(7)), Err("'content' must be a string or an array of parts, not a number".into()));
        assert_eq!(
            read(json!([{ "type": "text", "text": "a" }, { "type": "file", "file": {} }])),
            Err("'content[1].type' is 'file', which is not supported: send text and images".into())
        );
        assert_eq!(read(json!([{ "type": "image_url" }])), Err("'content[0].image_url' is required".into()));
        assert_eq!(
            read(json!([{ "type": "text", "text": 1 }])),
            Err("'content[0].text' must be a string, not a number".into())
        );
        assert_eq!(
            read(json!([{ "type": "refusal", "refusal": "no" }])),
            Err("'content[0].type' is 'refusal', which has no place in a message of this role".into())
        );
    }
}
